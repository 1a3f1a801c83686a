"""The command of an exported network, by itself."""

import sys
import threading

import numpy as np
import pytest
from PIL import Image
from programs import PATIENCE

from l2w_jax.interop.exported_folder import load_program, write_programs


class BrightnessNetwork:
    """Tells white images from black ones, and how many it was shown at once."""

    def __init__(self):
        names = ["black", "white"]
        image_format = {"size": 8, "centre_share": 1.0, "max_pixels": 64}
        self.description = {"class_names": names, "image_format": image_format}
        self.batches = []

    def __call__(self, images):
        self.batches.append(len(images))
        labels = images[:, 0, 0, 0] // 255
        return labels, labels, np.full(len(images), 0.5)


@pytest.fixture
def classify(tmp_path, monkeypatch):
    """The module as it lies in an exported folder, beside those that it imports."""
    folder = tmp_path / "exported"
    write_programs(folder, "run_onnx.py")
    monkeypatch.syspath_prepend(folder)
    return load_program(folder, "classify.py")


def test_more_files_than_a_batch_are_each_classified_once_and_in_order(
    classify, tmp_path, monkeypatch, capsys
):
    network = BrightnessNetwork()
    monkeypatch.setattr(classify, "BATCH", 2)
    names = ["black", "white", "white", "black", "white"]
    files = [str(tmp_path / f"{place}.png") for place in range(5)]
    for name, file in zip(names, files, strict=True):
        Image.new("RGB", (8, 8), name).save(file)
    assert classify.classify_files(network, files) == 0
    assert network.batches == [2, 2, 1]
    assert capsys.readouterr().out.splitlines() == [
        f"{name}\t50.0%\texit {1 + (name == 'white')}\t{file}"
        for name, file in zip(names, files, strict=True)
    ]


def test_each_core_reads_an_image(classify, tmp_path, monkeypatch):
    # Whoever waits alone waits in vain.
    all_at_once = threading.Barrier(3, timeout=PATIENCE)
    import image_files

    def together(*arguments):
        all_at_once.wait()
        return np.zeros((8, 8, 3), np.uint8)

    monkeypatch.setattr(classify, "available_cores", lambda: 3)
    monkeypatch.setattr(image_files, "read_image", together)
    network = BrightnessNetwork()
    assert classify.classify_files(network, [str(tmp_path / f"{i}.png") for i in range(6)]) == 0
    assert network.batches == [6]


def test_further_classes_are_in_lines_below(classify, tmp_path, capsys):
    def network(images):
        count = len(images)
        labels, confidences = np.tile([1, 0], (count, 1)), np.tile([0.875, 0.125], (count, 1))
        return labels, np.zeros(count, int), confidences

    network.description = BrightnessNetwork().description
    np.save(tmp_path / "images.npy", np.zeros((2, 8, 8, 3), np.uint8))
    assert classify.classify_array(network, [str(tmp_path / "images.npy")]) == 0
    of_one = ["white\t87.5%\texit 1", "black\t12.5%"]
    assert capsys.readouterr().out.splitlines() == 2 * of_one
    file = str(tmp_path / "image.png")
    Image.new("RGB", (8, 8)).save(file)
    assert classify.classify_files(network, [file]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{of_one[0]}\t{file}", of_one[1]]


def test_an_array_of_other_numbers_than_bytes_is_refused(classify, tmp_path):
    network = BrightnessNetwork()
    np.save(tmp_path / "images.npy", np.zeros((2, 8, 8, 3), np.float32))
    with pytest.raises(ValueError, match=r"holds float32 \[2, 8, 8, 3\], must hold uint8 \[N"):
        classify.classify_array(network, [str(tmp_path / "images.npy")])
    assert network.batches == []


def test_names_are_shown_in_one_line_and_move_no_cursor(classify, tmp_path, capsys):
    network = BrightnessNetwork()
    network.description["class_names"] = ["bl\x1b[2Jack", "white"]
    good, bad = tmp_path / "a\nb.png", tmp_path / "c\x1b[1m.png"
    Image.new("RGB", (8, 8)).save(good)
    assert classify.classify_files(network, [str(good), str(bad)]) == 1
    printed = capsys.readouterr()
    assert printed.out == f"bl\\x1b[2Jack\t50.0%\texit 1\t{tmp_path}/a\\nb.png\n"
    assert printed.err.startswith(f"{tmp_path}/c\\x1b[1m.png: cannot be read")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive", b"\x93NUMPY\1\0\2\0{"])
def test_what_is_no_array_is_told(content, classify, tmp_path):
    (tmp_path / "images.npy").write_bytes(content)
    with pytest.raises(
        ValueError, match=r"images\.npy: no file of an array that numpy\.save wrote"
    ):
        classify.classify_array(BrightnessNetwork(), [str(tmp_path / "images.npy")])


@pytest.mark.parametrize("others", [["b.npy"], ["b.png"]])
def test_an_array_is_classified_alone(classify, others, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["run_onnx.py", "a.npy", *others])
    with pytest.raises(SystemExit, match=r"^usage: python run_onnx\.py IMAGE \.\.\. or IMAGES"):
        classify.main(pytest.fail)
