"""What a device sends that codes a face and leaves the rest to a server."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
from edgeopt.privacy import FaceModels, edge_faces
from edgeopt.training import Quantise, leakage
from tests.one_thread import one_thread  # noqa: F401 - a fixture of all tests here


def test_what_latents_give_away():
    """Latents cross, in bytes as they are; they give away far more than the mean does: who it is, and how it looks."""
    models = FaceModels.pretrained()
    task, attributes = edge_faces(models, people=8, looks=20)
    assert np.array_equal(np.bincount(task.train.targets), [20] * 8)
    assert not torch.equal(task.train.inputs, task.test.inputs)
    with torch.no_grad():
        sent = task.forward(task.initial_weights(), task.test.inputs[:2], 0, 1, training=False).outputs
        torch.testing.assert_close(sent, models.coder.encode(task.test.inputs[:2]))
    found = leakage(task, 1, attributes=attributes, samples=160, steps=20)
    assert found.bytes_per_sample == 4 * 512
    assert found.leaks["labels"].chance < 0.2
    assert found.leaks["labels"].linear > 0.3
    assert found.leaks["appearance"].linear > 0.5
    coded = leakage(task, 1, codec=Quantise(bits=4), attributes=attributes, samples=160, steps=20)
    assert coded.bytes_per_sample < found.bytes_per_sample / 4
