"""Batches that TensorFlow's threads fill: nothing of one is kept, missed or hidden."""

import gc
import itertools
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from programs import ENVIRONMENT, PATIENCE

from l2w_jax.data import decode, reading
from l2w_jax.data.bad_images import BadImages
from l2w_jax.data.encoded import ImageFiles
from l2w_jax.data.reading import Choice, read_batches, read_evaluation_batches, read_one
from l2w_jax.data.tensorflow_import import tf


def test_a_program_ends_while_threads_of_tensorflow_call_python(tmp_path):
    file = tmp_path / "image.jpg"
    Image.new("RGB", (3, 4)).save(file)
    program = [sys.executable, Path(__file__).with_name("read_slowly.py"), str(file)]
    finished = subprocess.run(program, env=ENVIRONMENT, timeout=120, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr


@pytest.fixture
def images(tmp_path) -> ImageFiles:
    generator = np.random.default_rng(0)
    for number in range(40):
        pixels = generator.integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number:02}.jpg")
    paths = [str(path).encode() for path in sorted(tmp_path.iterdir())]
    return ImageFiles(np.array(paths), np.arange(40, dtype=np.int32))


def some_choices(batch_size: int, num_batches: int):
    for number in range(num_batches):
        positions = (np.arange(batch_size) + number * batch_size) % 40
        yield Choice(positions, positions % 2 == 0, (np.full(batch_size, 0.5, np.float32),))


def read(images, choices, num_batches):
    return read_batches(images, choices, num_batches, 8, 10**6, decode.centre_boxes)


@pytest.mark.parametrize("batch_size", [1, 7, 16, 17, 32, 34])
def test_batches_of_any_size_have_each_image_in_its_place(images, batch_size):
    num_batches = 5
    alone = list(read(images, some_choices(1, 40), 40))
    choices = some_choices(batch_size, num_batches)
    batches = list(read(images, choices, num_batches))
    assert len(batches) == num_batches
    for number, batch in enumerate(batches):
        assert batch.is_read.all()
        rows = (np.arange(batch_size) + number * batch_size) % 40
        np.testing.assert_array_equal(batch.labels, rows)
        for pixels, row in zip(batch.pixels, rows, strict=True):
            np.testing.assert_array_equal(pixels, alone[row].pixels[0])


@pytest.mark.parametrize("broken", [[0], [15, 16], [39], range(32, 40), range(40)])
def test_broken_images_leave_the_others_as_they_are(images, broken):
    rows = [(np.arange(20), np.ones(20, bool)), (np.arange(20, 40), np.ones(20, bool))]
    whole = list(read_evaluation_batches(images, rows, 8, 10**6, BadImages(40, 1.0)))
    for position in broken:
        with open(images.paths[position], "wb") as file:
            file.write(b"no image")
    bad = BadImages(40, 1.0)
    batches = list(read_evaluation_batches(images, rows, 8, 10**6, bad))
    is_read = np.concatenate([batch.is_read for batch in batches])
    np.testing.assert_array_equal(np.flatnonzero(~is_read), broken)
    assert len(bad) == len(broken)
    for batch, of_whole in zip(batches, whole, strict=True):
        np.testing.assert_array_equal(batch.pixels[batch.is_read], of_whole.pixels[batch.is_read])
        assert (batch.pixels[~batch.is_read] == 0).all()


def test_an_image_read_alone_is_what_it_would_be_in_a_batch(images):
    bad = BadImages(40, 0.0)
    # The images of even positions are mirrored.
    for batch in read(images, some_choices(2, 2), 2):
        for row in range(2):
            choice = batch.choice.row(row)
            pixels, label = read_one(images, choice, 8, 10**6, decode.centre_boxes, bad)
            np.testing.assert_array_equal(pixels, batch.pixels[row])
            assert label == batch.labels[row]


def test_an_error_of_the_choices_is_raised(images):
    def choices():
        yield from some_choices(4, 3)
        raise ZeroDivisionError("no fourth")

    batches = read(images, choices(), 10)
    with pytest.raises(ZeroDivisionError, match="no fourth"):
        list(batches)


def test_choices_are_asked_for_a_few_batches_ahead_only(images):
    asked = itertools.count()

    def choices():
        for choice in some_choices(16, 1000):
            next(asked)
            yield choice

    batches = read(images, choices(), 1000)
    for _ in range(20):
        next(batches)
    batches.close()
    assert next(asked) < 20 + 16


class CountedFiles(ImageFiles):
    """Releases `groups` once for each group that is read."""

    def read(self, *references):
        encoded, labels = super().read(*references)

        def counted(labels):
            self.groups.release()
            return labels

        return encoded, tf.ensure_shape(
            tf.numpy_function(counted, [labels], tf.int32), labels.shape
        )


def test_batches_are_read_before_they_are_asked_for(images, monkeypatch):
    # One group of images after another: it is not this that reads ahead.
    monkeypatch.setattr(reading, "available_cores", lambda: 1)
    images = CountedFiles(*images)
    images.groups = threading.Semaphore(0)
    # Of three groups each.
    batches = read(images, some_choices(39, 12), 12)
    next(batches)
    for _ in range(3 * 3):
        assert images.groups.acquire(timeout=PATIENCE)
    batches.close()


def test_a_thread_that_is_at_work_finds_the_reading_that_is_closed(images, monkeypatch):
    """TensorFlow would print its error, with a traceback."""
    begin, at_work, without_reading = reading._begin, threading.Event(), []

    def slowly(key, number):
        at_work.set()
        time.sleep(0.1)
        at_work.clear()
        if int(key) not in reading._readings:
            without_reading.append(number)
        return begin(key, number)

    monkeypatch.setattr(reading, "_begin", slowly)
    batches = read(images, some_choices(8, 1000), 1000)
    next(batches)
    while not at_work.is_set():
        next(batches)
    batches.close()
    assert not without_reading


def test_nothing_is_kept_of_what_has_been_read(images):
    """TensorFlow holds a function that a graph calls for ever, and all that it refers to."""

    def graphs() -> int:
        gc.collect()
        return sum(type(thing).__name__ == "FuncGraph" for thing in gc.get_objects())

    def read_all():
        batches = read(images, some_choices(8, 5), 5)
        held = [weakref.ref(batch.pixels) for batch in batches]
        gc.collect()
        return held

    read_all()
    before = graphs()
    held = [pixels for _ in range(5) for pixels in read_all()]
    assert graphs() == before
    assert not any(pixels() is not None for pixels in held)
    assert not reading._readings
