from string import ascii_letters

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from mtrlib import figures
from mtrlib.data import checks
from mtrlib.tasks import TASKS, Task


def test_every_task_has_a_colour_and_a_marker_of_its_own():
    assert set(figures.COLOURS) == set(figures.MARKERS) == set(TASKS)
    assert len(set(figures.COLOURS.values())) == len(set(figures.MARKERS.values())) == 11


def test_heat_maps_show_every_number_and_label_their_axes():
    matrix = pd.DataFrame([[1.0, 2.0], [np.nan, 0.0]], index=list("sd"), columns=list("sd"))
    figure = figures.heat_maps({"one": matrix, "two": matrix}, "vulnerability")
    *panels, colour_bar = figure.axes
    assert [axis.get_title() for axis in panels] == ["one", "two"]
    assert [text.get_text() for text in panels[0].texts] == ["1.00", "2.00", "0"]
    assert panels[0].get_ylabel() == "main task"
    assert colour_bar.get_ylabel() == "times the single-task model"


def test_the_same_change_has_the_same_colour_in_all_heat_maps_of_a_figure():
    matrices = {
        "large": pd.DataFrame([[1.0, 1.8], [0.7, 1.0]], index=list("sd"), columns=list("sd")),
        "small": pd.DataFrame([[2.0, 2.1], [7.0, 10.0]], index=list("sd"), columns=list("sd")),
        "one row": pd.DataFrame([[1.0, -1.0]], index=["s"], columns=list("sd")),
    }
    *panels, colour_bar = figures.heat_maps(matrices, "vulnerability").axes
    shades = [axis.images[0].to_rgba(axis.images[0].get_array()) for axis in panels if axis.images]
    assert np.array_equal(shades[0][1, 0], shades[1][1, 0])  # .7 times the single-task model, of 1 and of 10
    assert np.abs(shades[1][0, 1] - shades[1][0, 0]).max() < 0.1, "5 % more is pale beside 80 % more"
    assert [text.get_text() for text in colour_bar.get_yticklabels()] == ["0.56", "0.75", "1.00", "1.34", "1.80"]
    assert np.ma.getmaskarray(panels[2].images[0].get_array()).tolist() == [[False, True]], "below 0: no colour"


def test_heat_maps_say_that_their_colours_end_at_double_and_half():
    matrix = pd.DataFrame([[1.0, 1700.0], [0.9, 1.0]], index=list("sd"), columns=list("sd"))
    figure = figures.heat_maps({"one": matrix}, "vulnerability")
    colour_bar = figure.axes[-1]
    assert [text.get_text() for text in colour_bar.get_yticklabels()] == ["0.50", "0.71", "1.00", "1.41", "2.00"]
    assert figure.axes[0].images[0].colorbar.extend == "both"


def test_errors_have_a_panel_a_main_task_and_a_line_for_the_single_task_model():
    rows = [
        {"main": m, "auxiliary": a, "attacked": k, "value": 2.0 + (a == "d"), "low": 1.0, "high": 4.0}
        for m in "sd"
        for a in "sd"
        for k in (("single",) if m == a else ("single", "joint"))
    ]
    table = pd.DataFrame(rows)
    alone = table.main == table.auxiliary
    figure = figures.errors(table[alone], table[~alone])
    assert [axis.get_title() for axis in figure.axes] == [f"{x}: {TASKS[x].name}" for x in "sd"]
    assert [axis.get_ylabel() for axis in figure.axes] == ["1 - mIoU", "squared error"]
    of_s = figure.axes[0]
    assert list(of_s.lines[0].get_ydata()) == [2.0, 2.0]
    assert [text.get_text() for text in of_s.get_xticklabels()] == ["d"]
    marks = [c for c in of_s.containers if hasattr(c, "lines")]
    assert [float(mark.lines[0].get_ydata()[0]) for mark in marks] == [3.0, 3.0]
    assert [mark.lines[0].get_markerfacecolor() for mark in marks] == [figures.COLOURS["d"], "white"]


def test_ratios_say_where_an_interval_is_cut():
    rows = pd.DataFrame({"setting": ["a", "b"], "attacked": "single", "ratio": 1.1, "low": 0.9, "high": [1.5, 9.5]})
    assert figures.ratios(rows, "setting", "times PGD").axes[0].get_xlabel() == "times PGD"
    cut = figures.ratios(rows.assign(high=[1.5, 40.0]), "setting", "times PGD").axes[0]
    assert cut.get_xlabel() == "times PGD\nintervals that reach further are cut at the edge"


def test_lines_have_a_panel_a_main_task_and_its_colours():
    rows = [
        {"main": m, "auxiliary": a, "attacked": "single", "setting": x, "value": x, "low": x - 1, "high": x + 1}
        for m in "sd"
        for a in "sd"
        for x in (4.0, 8.0)
    ]
    figure = figures.lines(pd.DataFrame(rows), "eps (255ths)", "vulnerability", log=True)
    assert [axis.get_title() for axis in figure.axes] == ["main task s", "main task d"]
    for axis in figure.axes:
        assert axis.get_xlabel() == "eps (255ths)"
        assert {line.get_color() for line in axis.lines} == {figures.COLOURS["s"], figures.COLOURS["d"]}


def test_pictures_of_targets_and_outputs():
    size = (8, 8)
    target = {"s": torch.zeros(size, dtype=torch.uint8), "d": torch.rand(1, *size), "n": torch.rand(3, *size)}
    output = {"s": torch.randn(3, *size), "d": torch.randn(1, *size), "n": torch.randn(3, *size)}
    rows = {"label": {"image": torch.rand(3, *size), **target}, "output": {"image": torch.rand(3, *size), **output}}
    figure = figures.images(rows, ("floor", "wall", "box"))
    titles = [axis.get_title() for axis in figure.axes]
    assert titles[:4] == ["image", "s: semantic segmentation", "d: z-depth", "n: surface normals"]
    assert titles[4:] == [""] * 4
    assert all(len(axis.images) == 1 for axis in figure.axes)
    assert len(figure.legends) == 1


def test_every_task_can_be_drawn():
    values = {x: torch.full((task.channels, 8, 8), -1.0) for x, task in TASKS.items() if x != "s"}
    values["A"][0] = 1.0
    values["p"][0] = 0.5
    figure = figures.images({"label": values}, ())
    drawn = {axis.get_title()[0]: axis.images[0].get_array() for axis in figure.axes}
    assert set(drawn) == set(values)
    assert drawn["A"][0, 0].tolist() == [1, 0, 0]
    assert drawn["p"][0, 0].tolist() == [0.75, 0, 0.5]  # no third value
    for letter in "kKeEr":
        assert figure.axes[list(values).index(letter)].images[0].get_clim() == (-1, 1)


def test_letters_of_a_data_set_of_your_own_have_a_colour_and_marker_of_their_own_too():
    looks = {(figures.colour(letter), figures.marker_of(letter)) for letter in ascii_letters}
    assert len(looks) == 52
    rows = [
        {"main": m, "auxiliary": a, "attacked": "single", "setting": x, "value": x, "low": x - 1, "high": x + 1}
        for m in "xs"
        for a in "xs"
        for x in (4.0, 8.0)
    ]
    figure = figures.lines(pd.DataFrame(rows), "eps (255ths)", "vulnerability")
    assert [axis.get_title() for axis in figure.axes] == ["main task s", "main task x"]
    assert [text.get_text() for text in figure.legends[0].texts] == ["s: semantic segmentation", "x"]


def test_pictures_of_tasks_that_a_data_set_defines():
    tasks = {
        "s": Task("s", "plan", "", 3, "classes", class_names=("a", "b", "c")),
        "c": Task("c", "kinds", "", 25, "classes"),
        "h": Task("h", "height", "", 1),
        "p": TASKS["p"],
    }
    pictures = {"s": torch.ones(8, 8), "h": torch.arange(64.0).view(1, 8, 8), "p": torch.zeros(2, 8, 8)}
    pictures["c"] = torch.full((8, 8), 24)
    figure = figures.images({"label": {"image": torch.rand(3, 8, 8), **pictures}}, ("a", "b", "c"), tasks)
    assert [axis.get_title() for axis in figure.axes][1:] == [f"{t}: {tasks[t].name}" for t in "shpc"]
    assert figure.axes[2].images[0].get_clim() == (0, 63)
    assert [[text.get_text() for text in legend.texts] for legend in figure.legends] == [["b"], ["24"]]


def test_pixels_without_a_label_are_white_and_no_class():
    mask = torch.ones(1, 8, 8, dtype=torch.bool)
    mask[0, 0] = False
    targets = {
        "s": torch.ones(1, 8, 8, dtype=torch.uint8),
        "h": torch.full((1, 1, 8, 8), 3.0),
        "n": torch.ones(1, 3, 8, 8),
    }
    tasks = {"s": Task("s", "", "", 2, "classes"), "h": Task("h", "", "", 1), "n": TASKS["n"]}
    pictures = figures.labels(targets, {"s": mask, "h": mask, "n": mask}, 0)
    assert all(values[..., 0, :].isnan().all() and not values[..., 1:, :].isnan().any() for values in pictures.values())
    assert figures.labels(targets, dict.fromkeys("shn"), 0)["s"].dtype == torch.uint8
    figure = figures.images({"label": pictures}, ("a", "b"), tasks)
    assert [text.get_text() for text in figure.legends[0].texts] == ["b"]
    assert figure.axes[1].images[0].get_clim() == (3, 3)
    assert (figure.axes[2].images[0].get_array()[0] == 1).all()


OWN = {
    "s": Task("s", "rooms of $a house", "", 2, "classes", class_names=("$x", "50%_$")),
    "d": Task("d", "depth in metres", "", 1, error_name="absolute error"),
    "e": Task("e", "instance edges", "", 1),
    "h": Task("h", "h", "", 1),
}


def test_names_and_units_are_those_of_the_data_set():
    rows = [
        {"main": m, "auxiliary": a, "attacked": k, "value": 2.0, "low": 1.0, "high": 4.0, "setting": x}
        for m in "sde"
        for a in "sdeh"
        for k in (("single",) if m == a else ("single", "joint"))
        for x in (4.0, 8.0)
    ]
    table = pd.DataFrame(rows)
    first = table[table.setting == 4.0]
    alone = first.main == first.auxiliary
    figure = figures.errors(first[alone], first[~alone & (first.auxiliary != "h")], OWN)
    seen = [axis for axis in figure.axes if axis.get_visible()]
    assert [axis.get_title() for axis in seen] == [f"{x}: {OWN[x].name}" for x in "sde"]
    assert [axis.get_ylabel() for axis in seen] == ["1 - mIoU", "absolute error", "squared error"]
    figure = figures.lines(table, "eps", "vulnerability", log=True, tasks=OWN)
    told = ["s: rooms of $a house", "d: depth in metres", "e: instance edges", "h"]
    assert [text.get_text() for text in figure.legends[0].texts] == told
    assert [axis.get_title() for axis in figure.axes] == [f"main task {each}" for each in told[:3]]
    papers = figures.lines(table, "eps", "vulnerability", log=True, tasks=TASKS)
    assert papers.axes[0].get_title() == "main task s", "the paper's tasks are known by their letters"


def test_every_letter_has_a_colour_of_its_own():
    assert len({figures.colour(letter).lower() for letter in ascii_letters}) == 52


def test_a_dollar_in_a_name_is_a_dollar(tmp_path):
    """Read as mathematics they end in an error or in TeX."""
    tasks = OWN | {"c": Task("c", "$\\frac{$", "", 2, "classes", class_names=("$a$", "$\\oops$"))}
    pictures = {"s": torch.ones(8, 8), "c": torch.ones(8, 8), "d": torch.rand(1, 8, 8)}
    drawn = {
        "pictures": figures.images({"$\\row$": {"image": torch.rand(3, 8, 8), **pictures}}, ("$x", "50%_$"), tasks)
    }
    matrix = pd.DataFrame([[1.0, 2.0], [2.0, 1.0]], index=list("sd"), columns=list("sd"))
    drawn["heat"] = figures.heat_maps({"measured, $\\encoder$": matrix}, "$\\vulnerability$")
    rows = pd.DataFrame({"name": ["$\\oops$"], "value": 1.0, "low": 0.5, "high": 2.0})
    drawn["bars"] = figures.bars(rows, "name", "value", "x")
    figures.write(tmp_path, "test", **drawn)
    texts = [text for figure in drawn.values() for text in figure.findobj(plt.Text) if "$" in text.get_text()]
    assert len(texts) >= 8
    assert not any(text.get_parse_math() for text in texts)


def test_logarithmic_axes_have_plain_numbers():
    rows = [
        {"main": "s", "auxiliary": a, "attacked": "single", "setting": x, "value": x / 9, "low": x / 18, "high": x}
        for a in "sd"
        for x in (4.0, 32.0)
    ]
    figure = figures.lines(pd.DataFrame(rows), "eps", "vulnerability", log=True)
    figure.canvas.draw()
    labels = [text.get_text() for axis in figure.axes for text in axis.get_yticklabels(which="both")]
    assert any(labels)
    assert not any("$" in label for label in labels)


def test_two_classes_of_one_name_are_two():
    task = Task("s", "plan", "", 3, "classes", class_names=("ball", "ball", "wall"))
    picture = torch.tensor([[0, 1], [2, 2]])
    figure = figures.images({"label": {"image": torch.rand(3, 2, 2), "s": picture}}, task.class_names, {"s": task})
    assert [text.get_text() for text in figure.legends[0].texts] == ["ball (0)", "ball (1)", "wall"]
    assert checks._named(task, np.array([5, 6, 7])) == {"ball (0)": 5, "ball (1)": 6, "wall": 7}


def test_a_share_a_ratio_and_a_number_below_zero_have_an_axis_each():
    """A correlation below zero has no place on a logarithmic axis, where it would lie on the side that is asked for."""
    columns = ["number", "where", "estimate", "low", "high", "asked", "decides", "verdict", "needs"]
    rows = [["1.2", "linf: cells", 0.2, 0.1, 0.4, "below 95%", True, "agrees", ""]]
    rows += [["3.2", "apgd: over PGD's", 1.7, 1.6, 1.8, "above 1.5 times", True, "agrees", ""]]
    rows += [["4.3", "clean error: rank correlation", -0.5, -0.8, -0.2, "above 0", True, "disagrees", ""]]
    figure = figures.findings(pd.DataFrame(rows, columns=columns))
    assert [axis.get_xscale() for axis in figure.axes] == ["linear", "log", "linear"]
    for axis, row in zip(figure.axes, rows, strict=True):
        assert [line.get_xdata().tolist() for line in axis.lines][:2] == [row[3:5], [row[2]]]
    asked = figure.axes[2].patches[0]
    assert (asked.get_x(), asked.get_width()) == (0, 1), "a correlation ends at 1"
