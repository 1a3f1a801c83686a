"""The command that classifies image files, with a run made on the spot."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from image_folders import refuse_folder
from PIL import Image
from written_runs import made_evaluation, made_predictions

from l2w_jax import predict
from l2w_jax.config import default_config, stored
from l2w_jax.early_exit import EarlyExitPredictor
from l2w_jax.errors import Incomplete, UserError
from l2w_jax.evaluation import results
from l2w_jax.run import restore

MUL_ADDS = [1e6, 2e6, 4e6]


@pytest.fixture
def config():
    config = default_config()
    config.dataset.update({"name": "digits", "image_size": 8, "num_classes": 4})
    config.dataset.augmentation = "shift"
    return config


@pytest.fixture
def evaluation():
    rng = np.random.default_rng(0)
    confidences = rng.random((3, 200)).astype(np.float32)
    correct = rng.random((3, 200)) < 0.5 + confidences / 2
    return made_evaluation(
        step=7,
        class_names=["cat", "dog", "fox", "owl"],
        anytime=[{"mul_adds": cost} for cost in MUL_ADDS],
        held_out=made_predictions(confidences, correct),
    )


@pytest.fixture
def folder(tmp_path):
    """Five images, one of them grey, a broken one, a text, and a hidden file."""
    rng = np.random.default_rng(0)
    (tmp_path / "inner").mkdir()
    for place, shape in enumerate([(8, 8, 3), (8, 8), (8, 8, 3), (16, 12, 3), (8, 8, 3)]):
        image = Image.fromarray(rng.integers(0, 256, shape).astype(np.uint8))
        image.save(tmp_path / ("inner" if place > 2 else "") / f"{place}.png")
    (tmp_path / "2_broken.png").write_text("no image")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".hidden.png").write_bytes((tmp_path / "0.png").read_bytes())
    return tmp_path


@pytest.fixture
def predictor(tiny_network):
    return EarlyExitPredictor(
        *tiny_network, [0.6, 0.6, 0], preprocess=lambda images: images.astype(np.float32) / 255
    )


def test_answers_come_in_order_and_bad_files_among_them(config, evaluation, folder, predictor):
    files = predict.files_in([folder, folder / "none.png"], Counter())
    found = list(predict.answers(files, config, predictor, evaluation))
    names = ["0.png", "1.png", "2.png", "2_broken.png", "inner/3.png", "inner/4.png", "none.png"]
    assert [answer["file"] for answer in found] == [str(folder / name) for name in names]
    assert "no image" in found[3]["error"] and "No such file" in found[6]["error"]
    pixels = np.stack([np.asarray(Image.open(folder / f"{n}.png")) for n in (0, 2, "inner/4")])
    decisions = predictor(pixels)
    for answer, *decision in zip([found[0], found[2], found[5]], *decisions, strict=True):
        label, exit_index, confidence = decision
        assert answer["class"] == ["cat", "dog", "fox", "owl"][label]
        assert answer["exit"] == exit_index + 1
        assert answer["confidence"] == pytest.approx(confidence, abs=1e-6)
        assert answer["saved"] == [0.75, 0.5, 0][exit_index]


def files(folder):
    return predict.files_in([folder], Counter())


def test_more_files_than_are_read_at_once(config, evaluation, folder, predictor, monkeypatch):
    together = list(predict.answers(files(folder), config, predictor, evaluation))
    monkeypatch.setattr(predict, "FILES_AT_ONCE", 2)
    apart = list(predict.answers(files(folder), config, predictor, evaluation))
    for one, other in zip(together, apart, strict=True):
        assert one.pop("confidence", 0) == pytest.approx(other.pop("confidence", 0), abs=1e-6)
        assert one == other


@pytest.fixture
def command(config, evaluation, predictor, monkeypatch, tmp_path_factory):
    """The command on a run whose files and network are the fixtures above."""
    monkeypatch.setattr(stored, "read_config", lambda workdir: config)
    monkeypatch.setattr(results.Evaluation, "load", lambda workdir: evaluation)
    monkeypatch.setattr(restore, "restore_predictor", lambda *_: predictor)
    workdir = tmp_path_factory.mktemp("run")
    return lambda *arguments: predict.main([f"--workdir={workdir}", *map(str, arguments)])


def test_the_table_names_class_confidence_exit_and_savings(command, folder, capsys):
    with pytest.raises(Incomplete, match=r"^1 of 6 files could not be classified$") as failure:
        command(folder)
    assert failure.value.exit_status == 1
    shown = capsys.readouterr()
    header, *rows = shown.out.splitlines()
    assert header.split() == ["class", "confidence", "exit", "saved", "file"]
    assert len(rows) == 5
    for row in rows:
        name, confidence, of_exits, saved, _ = row.split(maxsplit=4)
        assert name in ("cat", "dog", "fox", "owl")
        assert 25 <= float(confidence.rstrip("%")) <= 100
        assert (of_exits, saved) in {("1/3", "75%"), ("2/3", "50%"), ("3/3", "0%")}
    assert shown.err.splitlines() == [
        f"{folder / '2_broken.png'}: is no image that can be decoded",
        "skipped files that are not images: 1 .txt",
    ]


def test_a_file_is_one_row_whatever_its_name(evaluation):
    answer = {"file": "a\n\x1b[2J.png", "class": "c\rt", "confidence": 1.0, "exit": 1, "saved": 0.5}
    (row,) = predict.table_rows(answer, evaluation)
    assert row.startswith("c\\rt ")
    assert row.endswith("  a\\n\\x1b[2J.png")


@pytest.mark.parametrize("count", [1, 4])
def test_several_classes_of_an_image_come_with_their_probabilities(
    calibrated_run, tmp_path, capsys, count
):
    images = calibrated_run.splits["test"].images[:8]
    for place, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{place}.png")
    command = [f"--workdir={calibrated_run.workdir}", str(tmp_path)]
    predict.main([*command, f"--top-k={count}", "--json"])
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    decided = calibrated_run.decisions("test")
    probs = np.exp(calibrated_run.log_probs("test")[decided.exits, np.arange(90)])[:8]
    probs /= probs.sum(axis=-1, keepdims=True)
    for answer, of_image in zip(answers, probs, strict=True):
        names = [each["class"] for each in answer["top"]]
        assert names == ["abcd"[label] for label in np.argsort(-of_image)[:count]]
        np.testing.assert_allclose(
            [each["confidence"] for each in answer["top"]], np.sort(of_image)[::-1][:count], 1e-5
        )
        assert answer["class"] == answer["top"][0]["class"]
        assert answer["confidence"] == answer["top"][0]["confidence"]
    predict.main([*command, f"--top-k={count}"])
    _, *rows = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in rows] == [
        each["class"] for answer in answers for each in answer["top"]
    ]
    assert [row.split()[2:3] for row in rows[:count]] == [
        [f"{answers[0]['exit']}/3"],
        *[[]] * (count - 1),
    ]
    predict.main([*command, "--json"])
    alone = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert not any("top" in answer for answer in alone)
    assert [answer["class"] for answer in alone] == [answer["class"] for answer in answers]
    assert [answer["exit"] for answer in alone] == [answer["exit"] for answer in answers]


@pytest.mark.parametrize("count", [0, -1, 5])
def test_more_classes_than_there_are_or_none_are_refused(command, folder, count):
    with pytest.raises(UserError, match=rf"^--top-k={count} is not allowed: must be from 1 to 4, "):
        command(f"--top-k={count}", folder)


def test_the_table_has_its_header_where_the_first_file_is_broken(command, folder, capsys):
    with pytest.raises(Incomplete, match=r"^1 of 2 files"):
        command(folder / "2_broken.png", folder / "0.png")
    header, _ = capsys.readouterr().out.splitlines()
    assert header == predict.TABLE_HEADER


def test_json_is_one_object_a_line(command, folder, capsys):
    with pytest.raises(Incomplete):
        command("--json", folder)
    objects = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(objects) == 6
    assert sum("error" in each for each in objects) == 1


def test_no_image_at_all_is_a_fault(command, folder, capsys):
    with pytest.raises(Incomplete, match=r"^1 of 1 files could not be classified$"):
        command(folder / "notes.txt")
    assert "notes.txt" in capsys.readouterr().err
    (folder / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: no image found") as failure:
        command(folder / "empty")
    assert failure.value.exit_status == 2


def test_a_folder_is_read_as_training_reads_it(
    config, evaluation, predictor, tmp_path, tmp_path_factory
):
    """Every kind of file, through links, upright, on white, and without its last bytes."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (tmp_path / "link").symlink_to(elsewhere)
    (elsewhere / "up").symlink_to(tmp_path)
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(elsewhere / "clear.webp")
    Image.new("RGB", (8, 8), "white").save(elsewhere / "white.bmp")
    photo = Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3))
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(elsewhere / "turned.tiff", exif=exif)
    photo.transpose(Image.Transpose.ROTATE_270).save(elsewhere / "upright.gif")
    photo.save(elsewhere / "whole.jpg")
    (elsewhere / "cut.jpg").write_bytes((elsewhere / "whole.jpg").read_bytes()[:-2])
    Image.new("1", (400, 300)).save(elsewhere / "large.png")
    config.dataset.max_pixels = 100_000
    found = predict.answers(files(tmp_path), config, predictor, evaluation)
    answers = {answer.pop("file").split("/")[-1]: answer for answer in found}
    assert answers["clear.webp"] == answers["white.bmp"]
    assert answers["cut.jpg"] == answers["whole.jpg"]
    assert "400 x 300 pixels are more than" in answers["large.png"]["error"]
    assert {"turned.tiff", "upright.gif"} <= answers.keys()
    assert answers["turned.tiff"]["class"] == answers["upright.gif"]["class"]


def test_a_folder_that_cannot_be_read_is_told_and_the_others_go_on(
    command, folder, capsys, monkeypatch
):
    refuse_folder(monkeypatch, "inner")
    (folder / "2_broken.png").unlink()
    with pytest.raises(Incomplete, match=r"^1 folders could not be read$"):
        command(folder, folder / "inner" / "3.png")
    shown = capsys.readouterr()
    assert len(shown.out.splitlines()) >= 4
    told = f"{folder / 'inner'}: cannot be read: Permission denied"
    assert told in shown.err
    with pytest.raises(Incomplete, match=r"inner: no image found; must be image files"):
        command(folder / "inner")
    assert capsys.readouterr().err == f"{told}\n"


def test_images_alone_are_no_fault(command, folder, capsys):
    command(folder / "inner", folder / "0.png")
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_what_tensorflow_says_of_a_broken_file_stays_out_of_the_answers(tmp_path):
    """In a process of its own: TensorFlow writes to the file, not to Python's sys.stderr."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    for ending in ("jpg", "png", "bmp", "gif"):
        path = tmp_path / f"broken.{ending}"
        Image.fromarray(pixels).save(path)
        path.write_bytes(path.read_bytes()[:200])
    completed = subprocess.run(
        [sys.executable, "-m", "tests.read_images", *sorted(map(str, tmp_path.iterdir()))],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )
    files = sorted(tmp_path.iterdir())
    for path, line in zip(files, completed.stdout.splitlines(), strict=True):
        assert line.startswith(f"{path}: is no image that can be decoded")
    assert completed.stderr == ""


def test_an_image_is_read_where_standard_error_is_closed(tmp_path):
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "good.png")
    command = (sys.executable, "-m", "tests.read_images", tmp_path / "good.png")
    completed = subprocess.run(
        ["sh", "-c", 'exec "$0" "$@" 2>&-', *command],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert (completed.returncode, completed.stdout) == (0, "")


def test_answers_are_those_that_the_thresholds_of_a_calibrated_run_promise(
    calibrated_run, tmp_path, capsys
):
    images, labels = calibrated_run.splits["test"]
    for place, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{place:02}.png")
    predict.main([f"--workdir={calibrated_run.workdir}", "--json", str(tmp_path)])
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    expected = calibrated_run.decisions("test")
    exits = np.array([answer["exit"] - 1 for answer in answers])
    np.testing.assert_array_equal(exits, expected.exits)
    assert [answer["class"] for answer in answers] == ["abcd"[label] for label in expected.labels]
    confidences = [answer["confidence"] for answer in answers]
    np.testing.assert_allclose(confidences, expected.confidences, rtol=1e-5)
    promised = calibrated_run.chosen["test"]
    shares = np.bincount(exits, minlength=3) / len(images)
    assert [promised[f"share_{k}"] for k in (1, 2, 3)] == shares.tolist()
    assert promised["top1"] == pytest.approx(100 * (expected.labels == labels).mean())
