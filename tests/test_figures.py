import numpy as np
import pandas as pd
import torch

from mtrlib import figures
from mtrlib.tasks import TASKS


def test_every_task_has_a_colour_and_a_marker_of_its_own():
    assert set(figures.COLOURS) == set(figures.MARKERS) == set(TASKS)
    assert len(set(figures.COLOURS.values())) == len(set(figures.MARKERS.values())) == 11


def test_heat_maps_show_every_number_and_label_their_axes():
    matrix = pd.DataFrame([[1.0, 2.0], [np.nan, 0.0]], index=list("sd"), columns=list("sd"))
    figure = figures.heat_maps({"one": matrix, "two": matrix}, "vulnerability")
    assert [axis.get_title() for axis in figure.axes] == ["one", "two"]
    assert [text.get_text() for text in figure.axes[0].texts] == ["1.00", "2.00", "0.00"]
    assert figure.axes[0].get_ylabel() == "main task"


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
