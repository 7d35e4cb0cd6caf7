import pytest
import torch

from mtrlib import models


def test_the_pair_of_s_and_d_has_the_size_that_the_supplement_prints():
    assert sum(p.numel() for p in models.build("resnet18", "sd", classes=7).parameters()) == 14_187_848
    assert sum(p.numel() for p in models.build("resnet18", "sd").parameters()) / 1e6 == pytest.approx(14.19, abs=0.005)


@pytest.mark.parametrize(("encoder", "size", "latent"), [("resnet18", 64, 2), ("resnet18_small", 64, 8)])
def test_outputs_have_the_size_of_the_image(encoder, size, latent):
    model = models.build(encoder, "sdn", seed=0).eval()
    images = torch.rand(2, 3, size, size)
    assert model.encoder(images).shape[-2:] == (latent, latent)
    outputs = model(images)
    shapes = {letter: tuple(output.shape) for letter, output in outputs.items()}
    assert shapes == {"s": (2, 18, size, size), "d": (2, 1, size, size), "n": (2, 3, size, size)}


def test_heads_are_named_by_task_not_by_position():
    """Save with one order of tasks, load with another: every task must keep its own head."""
    one = models.build("resnet18_small", "dsn", seed=1).eval()
    two = models.build("resnet18_small", "nsd", seed=2).eval()
    two.load_state_dict(one.state_dict())
    images = torch.rand(2, 3, 16, 16)
    ours, theirs = one(images), two(images)
    for letter in "sdn":
        assert torch.equal(ours[letter], theirs[letter])


def test_only_the_decoders_asked_for_run():
    model = models.build("resnet18_small", "sdn", seed=0).eval()
    model.decoders["s"].register_forward_hook(lambda *_: pytest.fail("the decoder of s ran"))
    assert list(model(torch.rand(1, 3, 16, 16), "nd")) == ["n", "d"]
    with pytest.raises(ValueError, match="'sdn'"):
        model(torch.rand(1, 3, 16, 16), "sE")


def test_images_are_normalised_inside():
    """The encoder sees zero where an image has ImageNet's mean colour."""
    model = models.build("resnet18_small", "d", seed=0)
    seen = []
    model.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1).expand(1, 3, 16, 16))
    torch.testing.assert_close(seen[0], torch.zeros(1, 3, 16, 16))


def test_a_seed_gives_an_encoder_and_a_decoder_of_each_task():
    wanted = (("sd", 3), ("d", 3), ("d", 4))
    pair, single, other = (models.build("resnet18_small", t, seed=s).state_dict() for t, s in wanted)
    assert all(torch.equal(pair[name], value) for name, value in single.items())
    assert not torch.equal(single["encoder.conv1.weight"], other["encoder.conv1.weight"])


def test_an_unknown_encoder_is_refused():
    with pytest.raises(ValueError, match="resnet18, resnet18_small"):
        models.build("resnet19", "s")
