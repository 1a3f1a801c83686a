"""The benchmark of the input reads what it says, and counts what was read."""

import itertools

import numpy as np
import pytest
from full_disk import fill_temporary_folder
from PIL import Image

from l2w_jax.benchmark import __main__ as benchmark
from l2w_jax.benchmark import input as input_benchmark
from l2w_jax.errors import UserError


def test_made_images_have_the_size_of_imagenets(tmp_path):
    kilobytes = input_benchmark._make_images(tmp_path, 8)
    files = list(tmp_path.glob("*/*/*.jpg"))
    assert len(files) == 8
    assert {Image.open(file).size for file in files} == {(500, 375)}
    assert 60 < kilobytes < 200


def test_rates_of_both_ways_are_reported():
    report = input_benchmark.benchmark_input(num_batches=3, rounds=1, num_images=80)
    rates = report["images_per_second"]
    assert all(rate > 1 for rate in rates.values())
    assert report["share_of_decoding"] == pytest.approx(rates["pipeline"] / rates["decoding"])


def test_a_folder_that_finds_no_room_is_told_in_one_line(monkeypatch):
    fill_temporary_folder(monkeypatch)
    with pytest.raises(UserError, match=r"^TMPDIR=.*: No space left on device$"):
        input_benchmark.benchmark_input(num_batches=2, rounds=1, num_images=80)


def test_decoding_meets_the_crops_of_the_pipeline(monkeypatch):
    calls = []
    monkeypatch.setattr(input_benchmark.augment, "draw_resized_crops", noting(calls))
    input_benchmark.benchmark_input(num_batches=2, rounds=1, num_images=80)
    # The last calls are those for decoding: the two timed batches and those before them.
    pipeline, decoding = calls[0], calls[-2 - input_benchmark._WARM_UP]
    np.testing.assert_array_equal(pipeline, decoding)


def test_batches_that_were_begun_together_at_the_start_are_not_counted(monkeypatch):
    now = 0.0

    def batches():
        nonlocal now
        for number in itertools.count():
            now += 1.0 if number >= 6 else 0.0
            yield number

    monkeypatch.setattr(input_benchmark.time, "monotonic", lambda: now)
    assert input_benchmark._images_per_second(batches(), 4) == 64


def noting(calls):
    draw = input_benchmark.augment.draw_resized_crops

    def drawn(num_images, generator):
        draws = draw(num_images, generator)
        calls.append(draws.crops)
        return draws

    return drawn


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input", "--workdir=x"], "--workdir: is not allowed with --input"),
        (["--input", "--config=x.py"], "--input: takes no --config"),
        (["--config=x.py", "--workdir=x"], "--workdir: is not allowed without --early-exit"),
        (["--config=x.py", "--runtime=onnx"], "--runtime: is not allowed without --early-exit"),
        (["--early-exit", "--no-cache"], "--no-cache: is not allowed with --early-exit"),
        (["--topology=h100:1", "--steps=3"], "--steps: is not allowed with --topology"),
        (["--input", "--steps=1"], "--steps: 1 is not allowed: must be at least 2 with --input"),
        (["--config=x.py", "--steps=0"], "--steps: 0 is not allowed: must be at least 1"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, message):
    with pytest.raises(UserError) as error:
        benchmark.main(arguments, 0.0)
    assert str(error.value) == message
