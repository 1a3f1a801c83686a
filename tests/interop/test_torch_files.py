"""The authors' checkpoint files: in, evaluated, and out again bit for bit."""

import csv
import json

import jax
import numpy as np
import pytest
from golden_files import named_tensor

from l2w_jax import main
from l2w_jax.config import default_config
from l2w_jax.data.digits import open_digits
from l2w_jax.errors import UserError
from l2w_jax.interop import (
    export_torch,
    import_torch,
    variables_from_torch,
    variables_to_torch,
)
from l2w_jax.interop.torch_checkpoint import read_torch_checkpoint
from l2w_jax.interop.torch_tensors import COUNTER
from l2w_jax.models import create_model
from l2w_jax.models.preprocessing import channel_statistics, normalize
from l2w_jax.run import checkpoints, start
from l2w_jax.training import create_train_state

# An extra of its own, with gigabytes of libraries on some machines.
torch = pytest.importorskip("torch")

CONFIG = """
from l2w_jax.config import default_config

def get_config(variant=""):
    config = default_config()
    config.model.update(num_exits=2, channels=8, growth_rate=4)
    config.weighting.hidden = 6
    return config
"""


def tensors_of(config):
    """Arrays of a fresh network, by the names of the authors' programs."""
    state = create_train_state(config, jax.random.key(0))
    variables = state.variables
    return variables_to_torch(create_model(config.model), variables)


@pytest.fixture(scope="module")
def tensors():
    """Tensors of the network that CONFIG describes, with counters as after 7 batches."""
    config = default_config()
    config.model.update(num_exits=2, channels=8, growth_rate=4)
    result = {}
    for name, value in tensors_of(config).items():
        drawn = named_tensor(name, value.shape).astype(np.float32)
        result[name] = torch.tensor(7) if name.endswith(COUNTER) else torch.tensor(drawn)
    return result


@pytest.fixture(scope="module")
def predictor():
    shapes = {"first_hidden_layer.fc": (6, 2), "output_layer": (2, 6)}
    values = {}
    for name, shape in shapes.items():
        values[name + ".weight"] = torch.tensor(named_tensor(name, shape)).float()
        values[name + ".bias"] = torch.tensor(named_tensor(name + ".b", shape[:1])).float()
    return values


@pytest.fixture
def config_path(tmp_path):
    path = tmp_path / "config.py"
    path.write_text(CONFIG)
    return path


def run_import(file, config_path, workdir):
    import_torch.main([str(file), f"--config={config_path}", f"--workdir={workdir}"])


@pytest.mark.parametrize("prefix", ["", "module."])
def test_import_and_export_give_the_file_back_bit_for_bit(
    prefix, tensors, predictor, config_path, tmp_path
):
    theirs, ours = tmp_path / "theirs.pth.tar", tmp_path / "ours.pth.tar"
    content = {
        "state_dict": {prefix + name: value for name, value in tensors.items()},
        "meta_state_dict": {prefix + name: value for name, value in predictor.items()},
        "epoch": 3,
    }
    torch.save(content, theirs)
    run_import(theirs, config_path, tmp_path / "run")
    assert checkpoints.has_checkpoint(tmp_path / "run")
    export_torch.main([str(ours), f"--workdir={tmp_path / 'run'}"])
    back = torch.load(ours, weights_only=True)
    for part in ("state_dict", "meta_state_dict"):
        assert back[part].keys() == content[part].keys()
        for name, value in content[part].items():
            assert torch.equal(back[part][name], value), name
            assert back[part][name].dtype == value.dtype, name


def test_a_file_without_a_predictor_comes_back_without_one(tensors, config_path, tmp_path):
    theirs, ours = tmp_path / "theirs.pth.tar", tmp_path / "ours.pth.tar"
    torch.save({"state_dict": tensors}, theirs)
    run_import(theirs, config_path, tmp_path / "run")
    export_torch.main([str(ours), f"--workdir={tmp_path / 'run'}"])
    assert not torch.load(ours, weights_only=True).get("meta_state_dict")


def test_a_predictor_that_plain_training_has_no_place_for_is_told(
    tensors, predictor, config_path, tmp_path, capsys
):
    torch.save({"state_dict": tensors, "meta_state_dict": predictor}, tmp_path / "theirs.pth.tar")
    flags = [f"--config={config_path}", "--config.weighting.kind=none"]
    import_torch.main([str(tmp_path / "theirs.pth.tar"), *flags, f"--workdir={tmp_path / 'run'}"])
    assert "4 of the weight predictor left out" in capsys.readouterr().out


def test_a_run_starts_from_an_imported_network(tensors, config_path, tmp_path, capsys):
    theirs, imported = tmp_path / "theirs.pth.tar", tmp_path / "imported"
    torch.save({"state_dict": tensors}, theirs)
    run_import(theirs, config_path, imported)
    config = default_config()
    config.model.update(num_exits=2, channels=8, growth_rate=4, num_classes=7)
    config.weighting.hidden = 6
    config.init.checkpoint = str(imported)
    capsys.readouterr()
    state = start.create_or_restore(config, tmp_path / "run")
    assert "new, since of another shape: params/classifiers_0/" in capsys.readouterr().out
    names = {name for name, value in tensors.items() if 10 not in value.shape}
    begun = variables_to_torch(create_model(config.model), state.variables)
    assert len(names) > 30
    for name in names:
        if not name.endswith(COUNTER):
            np.testing.assert_array_equal(begun[name], tensors[name].numpy(), name)


def test_a_file_is_named_as_what_can_be_imported(config_path, tmp_path):
    config = default_config()
    config.model.update(num_exits=2, channels=8, growth_rate=4)
    config.init.checkpoint = str(config_path)
    with pytest.raises(UserError, match=r"^config.init.checkpoint: .*import_torch makes one"):
        start.create_or_restore(config, tmp_path / "run")


def test_imported_network_is_evaluated_by_main(config_path, tmp_path):
    overrides = ["name=digits", "image_size=16", "holdout=180", "augmentation=none"]
    flags = [
        f"--config={config_path}",
        *(f"--config.dataset.{override}" for override in overrides),
        "--config.model.growth_factors=(1,2)",
        "--config.model.bottleneck_factors=(1,2)",
        f"--workdir={tmp_path / 'run'}",
    ]
    config = main.parse(["main", *flags]).config
    model = create_model(config.model)
    names = {k: v.shape for k, v in tensors_of(config).items() if not k.endswith(COUNTER)}
    arrays = {name: named_tensor(name, shape).astype(np.float32) for name, shape in names.items()}
    file = tmp_path / "theirs.pth.tar"
    torch.save({"state_dict": {name: torch.tensor(arrays[name]) for name in arrays}}, file)
    import_torch.main([str(file), *flags])
    assert main.main(["main", *flags, "--mode=evaluate"]) == 0

    with open(tmp_path / "run" / "anytime.csv", newline="") as table:
        reported = [float(row["top1"]) for row in csv.DictReader(table)]
    (batch,) = open_digits(config).evaluation_batches("test", 360)
    images = normalize(batch["image"], *channel_statistics("digits"))
    logits = jax.jit(lambda v, x: model.apply(v, x, train=False))(
        variables_from_torch(model, arrays), images
    )
    correct = np.asarray(logits).argmax(axis=-1) == batch["label"]
    np.testing.assert_allclose(reported, 100 * correct.mean(axis=1), atol=0.006)


def test_faulty_tensors_are_named_and_nothing_is_written(tensors, config_path, tmp_path):
    faulty = dict(tensors)
    del faulty["classifier.0.linear.bias"]
    faulty["classifier.1.linear.weight"] = torch.zeros(3, 128)
    faulty["classifier.7.linear.weight"] = torch.zeros(3, 128)
    file = tmp_path / "faulty.pth.tar"
    torch.save({"state_dict": faulty}, file)
    with pytest.raises(UserError) as error:
        run_import(file, config_path, tmp_path / "run")
    lines = str(error.value).splitlines()
    assert [line.split(": ", 1)[1] for line in lines] == [
        "classifier.0.linear.bias: missing, must have shape (10,)",
        "classifier.1.linear.weight: shape (3, 128) is wrong, must be (10, 128)",
        "classifier.7.linear.weight: not a tensor of this network",
    ]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("counter", [torch.tensor(torch.nan), torch.zeros(3), torch.zeros(0)])
def test_a_counter_that_counts_nothing_is_named(counter, tensors, config_path, tmp_path):
    name = next(name for name in tensors if name.endswith(COUNTER))
    file = tmp_path / "faulty.pth.tar"
    torch.save({"state_dict": tensors | {name: counter}}, file)
    with pytest.raises(UserError, match=rf"^{file}: {name}: must be one finite number$"):
        run_import(file, config_path, tmp_path / "run")


class Payload:
    """Unpickling this would run code."""

    def __reduce__(self):
        return (json.loads, ('{"state_dict": {}}',))


def test_pickled_code_is_not_executed(tmp_path):
    file = tmp_path / "code.pth.tar"
    torch.save({"state_dict": Payload()}, file)
    with pytest.raises(UserError, match="not a checkpoint of tensors alone"):
        read_torch_checkpoint(file)


def test_file_that_is_no_checkpoint_is_refused_without_advice_to_trust_it(tmp_path):
    file = tmp_path / "picture.png"
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    with pytest.raises(UserError, match=r"picture\.png: not a checkpoint") as error:
        read_torch_checkpoint(file)
    assert "weights_only=False" not in str(error.value) and "`False`" not in str(error.value)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.eye(3).to_sparse(),
        torch.empty(3, device="meta"),
        # One number, that stands for 20 TB of them.
        torch.as_strided(torch.zeros(1, dtype=torch.float16), (10**7, 10**6), (0, 0)),
    ],
    ids=["sparse", "without data", "huge"],
)
def test_a_tensor_that_numpy_cannot_hold_is_named(tensor, tmp_path):
    file = tmp_path / "tensor.pth.tar"
    torch.save({"state_dict": {"weight": tensor}}, file)
    with pytest.raises(UserError, match=r"state_dict: 'weight' must be a tensor that NumPy can"):
        read_torch_checkpoint(file)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ({"state_dict": {"epoch": 3}}, "state_dict: 'epoch' must be a tensor, not int"),
        (
            {"state_dict": {}, "meta_state_dict": [1]},
            "meta_state_dict: must be a dictionary of tensors, not list",
        ),
        (
            {"state_dict": {}, "meta_state_dict": torch.zeros(3)},
            "meta_state_dict: must be a dictionary of tensors, not Tensor",
        ),
        ({"state_dict": {3: torch.zeros(3)}}, "state_dict: 3 is not allowed: the names of tensors"),
        (
            {"state_dict": {"a": torch.zeros(3), "module.a": torch.ones(3)}},
            "state_dict: has tensors both with and without 'module.' before their name",
        ),
    ],
)
def test_what_is_no_tensor_or_has_no_name_of_its_own_is_told(content, fault, tmp_path):
    file = tmp_path / "other.pth.tar"
    torch.save(content, file)
    with pytest.raises(UserError, match=fault):
        read_torch_checkpoint(file)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_tensors_of_another_precision_become_float32(dtype, tmp_path):
    file = tmp_path / "half.pth.tar"
    torch.save({"state_dict": {"a": torch.tensor([0.5], dtype=dtype), "n": torch.tensor(3)}}, file)
    network = read_torch_checkpoint(file).network
    assert network["a"].dtype == np.float32 and network["a"].tolist() == [0.5]
    assert network["n"].dtype == np.int64


@pytest.mark.parametrize("content", [[1, 2], {"weights": {}}])
def test_file_without_state_dict_is_refused(content, tmp_path):
    file = tmp_path / "other.pth.tar"
    torch.save(content, file)
    with pytest.raises(UserError, match="must hold a dictionary with 'state_dict'"):
        read_torch_checkpoint(file)


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"none\.pth\.tar: No such file"):
        read_torch_checkpoint(tmp_path / "none.pth.tar")


def test_folder_with_checkpoints_is_not_written_over(tensors, config_path, tmp_path):
    file = tmp_path / "theirs.pth.tar"
    torch.save({"state_dict": tensors}, file)
    run_import(file, config_path, tmp_path / "run")
    before = (tmp_path / "run" / "config.json").read_text()
    with pytest.raises(UserError, match="has checkpoints already"):
        run_import(file, config_path, tmp_path / "run")
    assert (tmp_path / "run" / "config.json").read_text() == before
