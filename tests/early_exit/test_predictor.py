"""Stopping early gives what looking at all exits afterwards gives, and computes less."""

import functools
import re
import threading
from concurrent.futures import ThreadPoolExecutor

import golden_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l2w_jax.early_exit import EarlyExitPredictor, rules
from l2w_jax.early_exit import predictor as predictor_module
from l2w_jax.early_exit.budget import (
    EVERYBODY_LEAVES,
    NOBODY_LEAVES,
    confidences_of,
    first_exits,
)
from l2w_jax.early_exit.predictor import BATCH_SIZES
from l2w_jax.models import create_model, initial_variables

IMAGES = np.random.default_rng(0).normal(0, 1, (512, 8, 8, 3)).astype(np.float32)
IMAGES += np.random.default_rng(1).normal(0, 1, (512, 1, 1, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def probs(tiny_network):
    model, variables = tiny_network
    return np.array(jax.nn.softmax(model.apply(variables, IMAGES, train=False)))


@pytest.fixture(scope="module")
def predictor(tiny_network):
    """Compiled once; a test takes it `with_thresholds` of its own."""
    return EarlyExitPredictor(*tiny_network, [0.5, 0.5, 0])


def check_against_simulation(decisions, probs, thresholds):
    """All equal, but for samples whose confidence is within rounding of a threshold."""
    confidences = confidences_of(probs)
    exits = first_exits(confidences, thresholds)
    clear = (np.abs(confidences - np.float32(thresholds)[:, None]) > 1e-5).all(axis=0)
    assert clear.mean() > 0.9 or len(clear) < 50
    everyone = np.arange(len(exits))
    np.testing.assert_array_equal(decisions.exits[clear], exits[clear])
    np.testing.assert_array_equal(
        decisions.labels[clear], probs.argmax(axis=-1)[exits, everyone][clear]
    )
    np.testing.assert_allclose(
        decisions.confidences[clear], confidences[exits, everyone][clear], atol=1e-5
    )
    assert decisions.labels.shape == decisions.exits.shape == decisions.confidences.shape


@given(data=st.data(), count=st.integers(1, 512), levels=st.lists(st.floats(0, 1.05), min_size=3))
@settings(max_examples=60, deadline=None)
def test_decisions_equal_those_from_the_full_network(predictor, probs, data, count, levels):
    # Drawn with repetition: duplicates are the rule.
    chosen = np.random.default_rng(data.draw(st.integers(0, 99))).integers(0, 512, count)
    # A threshold between two confidences of its exit, below all or above all of them.
    quantiles = np.quantile(probs.max(axis=-1), np.clip(levels[:3], 0, 1), axis=1).diagonal()
    thresholds = np.where(np.float32(levels[:3]) > 1, NOBODY_LEAVES, quantiles)
    decisions = predictor.with_thresholds(thresholds)(IMAGES[chosen])
    check_against_simulation(decisions, probs[:, chosen], [*thresholds[:2], EVERYBODY_LEAVES])


@pytest.mark.parametrize("count", [1, 2, 5, 31, 32, 33, 255, 256, 257, 512])
@pytest.mark.parametrize("everybody_leaves_at", [0, 1, 2])
def test_all_may_leave_at_one_exit(predictor, probs, count, everybody_leaves_at):
    thresholds = np.full(3, NOBODY_LEAVES)
    thresholds[everybody_leaves_at] = 0
    decisions = predictor.with_thresholds(thresholds)(IMAGES[:count])
    assert decisions.exits.tolist() == [everybody_leaves_at] * count
    check_against_simulation(decisions, probs[:, :count], thresholds)


def test_several_classes_come_by_falling_probability_at_the_exit_where_an_image_leaves(
    tiny_network, predictor, probs
):
    thresholds = [*np.median(probs.max(axis=-1), axis=1)[:2] + 1e-4, 0]
    one = predictor.with_thresholds(thresholds)(IMAGES[:40])
    three = EarlyExitPredictor(*tiny_network, thresholds, top_k=3)(IMAGES[:40])
    np.testing.assert_array_equal(three.exits, one.exits)
    np.testing.assert_array_equal(three.labels[:, 0], one.labels)
    np.testing.assert_allclose(three.confidences[:, 0], one.confidences, rtol=1e-5)
    of_image = probs[one.exits, np.arange(40)]
    np.testing.assert_array_equal(three.labels, np.argsort(-of_image, axis=-1)[:, :3])
    np.testing.assert_allclose(three.confidences, np.sort(of_image)[:, :-4:-1], rtol=1e-5)


def test_equal_images_get_equal_answers(predictor, probs):
    thresholds = np.median(probs.max(axis=-1), axis=1) + 1e-4
    decisions = predictor.with_thresholds(thresholds)(np.tile(IMAGES[:7], (20, 1, 1, 1)))
    for array in decisions:
        np.testing.assert_array_equal(array, np.tile(array[:7], 20))


def test_no_images_no_decisions(predictor):
    decisions = predictor(IMAGES[:0])
    assert [array.shape for array in decisions] == [(0,), (0,), (0,)]


def test_whoever_has_left_costs_nothing(tiny_network, probs, monkeypatch):
    model, _ = tiny_network
    traced = set()
    stage = type(model).stage

    def recorded(self, k, carry, train):
        traced.add((k, len(carry["pooled"])))
        return stage(self, k, carry, train)

    monkeypatch.setattr(type(model), "stage", recorded)
    threshold = np.sort(probs[0, :256].max(axis=-1))[40] + 1e-6
    EarlyExitPredictor(*tiny_network, [threshold, 0, 0])(IMAGES[:256])
    # A single image is what the layers are found with whose batch norms are folded.
    assert {(k, count) for k, count in traced if count > 1} == {(0, 256), (1, 48)}


def test_a_stage_is_handed_the_variables_that_it_reads_alone(tiny_network):
    predictor = EarlyExitPredictor(*tiny_network, [0, 0, 0])
    predictor(IMAGES[:1])
    # A kernel and a bias each of block and head, and four arrays of the batch norm.
    assert len(predictor._stages._compiled[0]._leaves) == 8


def test_other_thresholds_share_what_is_compiled(predictor, caplog):
    first, last = (predictor.with_thresholds([t, t, 0]) for t in (0, NOBODY_LEAVES))
    last(IMAGES[:32])
    with jax.log_compiles():
        assert set(first(IMAGES[:32]).exits) == {0}
        assert set(last(IMAGES[:32]).exits) == {2}
    assert not caplog.records
    with pytest.raises(ValueError, match="for 3 exits"):
        predictor.with_thresholds([0.5])


def test_threads_may_share_a_predictor_from_its_first_images_on(tiny_network, predictor):
    thresholds = [NOBODY_LEAVES, NOBODY_LEAVES, 0]
    expected = predictor.with_thresholds(thresholds)(IMAGES[:8])
    together = threading.Barrier(8)

    def decisions(shared):
        together.wait()
        return shared(IMAGES[:8])

    with ThreadPoolExecutor(8) as threads:
        for _ in range(3):
            shared = EarlyExitPredictor(*tiny_network, thresholds)
            for found in threads.map(decisions, [shared] * 8):
                np.testing.assert_array_equal(found.labels, expected.labels)
                np.testing.assert_array_equal(found.exits, expected.exits)
                np.testing.assert_allclose(found.confidences, expected.confidences, rtol=1e-5)


def test_nothing_is_compiled_after_warming_up(tiny_network, probs, caplog):
    sizes = (1, 4, 32)
    thresholds = np.median(probs.max(axis=-1), axis=1)
    predictor = EarlyExitPredictor(*tiny_network, thresholds, batch_sizes=sizes)
    predictor.warm_up(IMAGES.shape[1:])
    with jax.log_compiles():
        for count in (1, 2, 3, 30, 31, 32, 33, 100):
            predictor(IMAGES[:count])
        assert not caplog.records
        # What is asserted on would show a compilation.
        EarlyExitPredictor(*tiny_network, thresholds, batch_sizes=[7])(IMAGES[:7])
        assert caplog.records


@pytest.mark.parametrize("array", ["bfloat16", "bool", "weak", "key"])
def test_rows_are_packed_in_their_type_and_on_a_cpu_without_compiling(array, caplog):
    numbers = jnp.arange(12.0).reshape(4, 3)
    arrays = {
        "bfloat16": numbers.astype(jnp.bfloat16),
        "bool": numbers > 4,
        "weak": jax.jit(lambda: jnp.where(numbers > 4, 1.0, 0.0))(),
        "key": jax.random.split(jax.random.key(0), 4),
    }
    features = {"first": numbers, "second": arrays[array]}
    expected = jax.tree.map(lambda x: x[jnp.array([3, 1, 1])], features)
    with jax.log_compiles():
        packed = predictor_module._pack(features, np.array([3, 1, 1], np.int32))
    # Those that NumPy has no type for are JAX's to pack.
    assert bool(caplog.records) == (array in ("weak", "key"))
    for found, wanted in zip(*map(jax.tree.leaves, (packed, expected)), strict=True):
        assert jax.typeof(found) == jax.typeof(wanted)
        assert np.all(found == wanted)


def test_answers_of_an_accelerator_are_copied_and_features_packed_there(predictor, monkeypatch):
    packed = []
    on_device = predictor_module._pack_on_device

    def pack(features, rows):
        packed.append(len(rows))
        return on_device(features, rows)

    middle = predictor.with_thresholds([0.4, 0.5, 0])
    on_a_cpu = middle(IMAGES[:40])
    monkeypatch.setattr(predictor_module, "_lies_on_cpu", lambda array: False)
    monkeypatch.setattr(predictor_module, "_pack_on_device", pack)
    for array, expected in zip(middle(IMAGES[:40]), on_a_cpu, strict=True):
        np.testing.assert_array_equal(array, expected)
    assert packed


def test_a_predictor_that_was_told_its_images_warms_up_unasked(tiny_network, caplog):
    def predictor(image):
        thresholds = [NOBODY_LEAVES, NOBODY_LEAVES, 0]
        return EarlyExitPredictor(
            *tiny_network, thresholds, lambda images: images / 255.0, batch_sizes=(2,), image=image
        )

    told = predictor(jax.ShapeDtypeStruct((8, 8, 3), np.uint8))
    told.warm_up()
    told.warm_up((8, 8, 3))
    with jax.log_compiles():
        told(np.ones((2, 8, 8, 3), np.uint8))
    assert not caplog.records
    with pytest.raises(ValueError, match=r"^images are uint8 \[2, 7, 8, 3\]; uint8 \[N, 8, 8, 3\]"):
        told.warm_up((7, 8, 3))
    with pytest.raises(ValueError, match=r"^image_shape is None; that of one image is expected"):
        predictor(None).warm_up()


def test_stored_images_are_preprocessed_on_the_device(tiny_network):
    stored = np.random.default_rng(2).integers(0, 256, (40, 8, 8, 3)).astype(np.uint8)

    def preprocess(images):
        return images.astype(jnp.float32) / 255

    thresholds = [0.5, 0.5, 0]
    direct = EarlyExitPredictor(*tiny_network, thresholds)(stored.astype(np.float32) / 255)
    through = EarlyExitPredictor(*tiny_network, thresholds, preprocess)(stored)
    np.testing.assert_array_equal(through.exits, direct.exits)
    np.testing.assert_allclose(through.confidences, direct.confidences, rtol=1e-5)
    with pytest.raises(ValueError, match="without a preprocess function"):
        EarlyExitPredictor(*tiny_network, thresholds)(stored)


def test_images_are_refused_that_are_not_as_the_predictor_was_told(tiny_network):
    stored = np.random.default_rng(2).integers(0, 256, (5, 8, 8, 3)).astype(np.uint8)
    image = jax.ShapeDtypeStruct((8, 8, 3), np.uint8)

    def preprocess(images):
        return images.astype(jnp.float32) / 255

    predictor = EarlyExitPredictor(*tiny_network, [0.5, 0.5, 0], preprocess, image=image)
    others = {
        "float64 [5, 8, 8, 3]": stored / 255,
        "float32 [5, 8, 8, 3]": stored.astype(np.float32),
        "uint16 [5, 8, 8, 3]": 257 * stored.astype(np.uint16),
        "object [5, 8, 8, 3]": stored.astype(object),
        "uint8 [5, 7, 7, 3]": stored[:, :7, :7],
        "uint8 [8, 8, 3]": stored[0],
    }
    for _ in range(2):
        for told, images in others.items():
            message = f"images are {told}; uint8 [N, 8, 8, 3] is expected"
            with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
                predictor(images)
        assert len(predictor(stored).labels) == 5
    assert len(predictor(stored[:0]).labels) == 0


def test_images_that_are_no_numbers_are_refused(tiny_network):
    predictor = EarlyExitPredictor(*tiny_network, [0.5, 0.5, 0], lambda images: images * 1.0)
    for dtype in ("object", "<U32"):
        with pytest.raises(ValueError, match=f"^images are {dtype}; numbers are expected$"):
            predictor(IMAGES[:2].astype(dtype))
    assert len(predictor(IMAGES[:2] > 0).labels) == 2


@pytest.mark.parametrize("dtype", ["u2", "i4", "f4", "f8"])
def test_the_byte_order_of_images_counts_for_nothing(tiny_network, dtype):
    predictor = EarlyExitPredictor(*tiny_network, [0.5, 0.5, 0], lambda images: images * 1.0)
    images = np.round(4 * IMAGES[:8]).clip(0).astype(dtype)
    # The second order meets what the first one made compile.
    one, other = (predictor(images.astype(np.dtype(dtype).newbyteorder(order))) for order in "<>")
    for array, expected in zip(one, other, strict=True):
        np.testing.assert_array_equal(array, expected)


# The last one is finite until JAX takes it as float32.
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_images_that_are_not_finite_are_refused(predictor, value):
    images = IMAGES[:5].astype(np.float64)
    images[3, 1, 2, 0] = value
    with pytest.raises(ValueError, match="image 3 of 5 holds NaN"):
        predictor(images)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_network_whose_answer_is_not_finite_is_refused(tiny_network, value):
    model, variables = tiny_network
    broken = jax.tree.map(np.array, variables)
    broken["params"]["head_1"]["bias"][0] = value
    with pytest.raises(ValueError, match="exit 2 is not finite"):
        EarlyExitPredictor(model, broken, [NOBODY_LEAVES, 0, 0])(IMAGES[:3])


def test_a_class_that_is_ruled_out_is_no_fault(tiny_network):
    model, variables = tiny_network
    without_a_class = jax.tree.map(np.array, variables)
    for k in range(3):
        without_a_class["params"][f"head_{k}"]["bias"][0] = -np.inf
    labels, *_ = EarlyExitPredictor(model, without_a_class, [0.5, 0.5, 0])(IMAGES)
    assert not np.any(labels == 0)


def test_impossible_arguments_and_shapes_are_refused(tiny_network):
    with pytest.raises(ValueError, match="for 3 exits"):
        EarlyExitPredictor(*tiny_network, [0.5, 0])
    with pytest.raises(ValueError, match="NaN is not a threshold"):
        EarlyExitPredictor(*tiny_network, [0.5, np.nan, 0])
    with pytest.raises(ValueError, match="positive sizes"):
        EarlyExitPredictor(*tiny_network, [0.5, 0.5, 0], batch_sizes=())
    with pytest.raises(ValueError, match=r"top_k is 0; a positive number"):
        EarlyExitPredictor(*tiny_network, [0.5, 0.5, 0], top_k=0)
    with pytest.raises(ValueError, match=r"top_k is 5; the network has 4 classes"):
        EarlyExitPredictor(*tiny_network, [0.5, 0.5, 0], top_k=5)(IMAGES[:1])
    with pytest.raises(ValueError, match=r"rule is 'margin'; a function is .* one of log_odds"):
        EarlyExitPredictor(*tiny_network, [0.5, 0.5, 0], rule="margin")
    with pytest.raises(ValueError, match=r"images have shape \(4,\); \[N, ...\], N images, is"):
        EarlyExitPredictor(*tiny_network, [0.5, 0.5, 0])(IMAGES[0, 0, :4, 0])


def test_thresholds_that_no_score_of_the_rule_reaches_are_refused(tiny_network):
    def of(rule, thresholds):
        return EarlyExitPredictor(*tiny_network, thresholds, rule=rule)

    fault = r"^threshold 2\.5 of exit 2 is above 1, the most that the rule confidence gives; "
    with pytest.raises(ValueError, match=fault):
        EarlyExitPredictor(*tiny_network, [0.5, 2.5, 0])
    with pytest.raises(ValueError, match=fault):
        EarlyExitPredictor(*tiny_network, [0.5, 0.5, 0]).with_thresholds([0.5, 2.5, 0])
    with pytest.raises(ValueError, match=r"threshold 0\.5 of exit 1 is above 0, .* negative_ent"):
        of(rules.negative_entropy, [0.5, -0.5, 0])
    of(rules.negative_entropy, [0, -0.5, 7])
    of(rules.log_odds, [2.5, -2.5, 0]).with_thresholds([9, 9, 0])


@pytest.mark.parametrize("threshold", [NOBODY_LEAVES, np.inf])
def test_an_exit_may_be_closed_on_purpose(predictor, threshold):
    closed = predictor.with_thresholds([threshold, threshold, 0])
    assert set(closed(IMAGES[:32]).exits) == {2}


def test_images_that_the_network_does_not_take_are_refused_at_any_call(tiny_network):
    predictor = EarlyExitPredictor(*tiny_network, [0.5, 0.5, 0])
    for _ in range(2):
        for images in (IMAGES[0], IMAGES[:2, ..., :1]):
            shape = ", ".join(map(str, images.shape[1:]))
            message = rf"images have shape \[N, {shape}\], which the network does not take: \w+"
            with pytest.raises(ValueError, match=message):
                predictor(images)
        predictor(IMAGES[:2])


@pytest.mark.parametrize("name", ["msdnet_tiny", "ranet_tiny"])
def test_convolutional_networks_exit_early_too(name):
    model = create_model(golden_files.config_of(golden_files.load("models")[name]["config"]).model)
    images = np.random.default_rng(3).normal(0, 1, (20, 32, 32, 3)).astype(np.float32)
    variables = initial_variables(model, jax.random.key(0), images[:1], train=False)
    logits = jax.jit(functools.partial(model.apply, train=False))(variables, images)
    probs = np.array(jax.nn.softmax(logits))
    thresholds = np.quantile(probs.max(axis=-1), 0.6, axis=1)
    decisions = EarlyExitPredictor(model, variables, thresholds, batch_sizes=(8, 20))(images)
    assert set(decisions.exits) == set(range(model.num_exits))
    check_against_simulation(decisions, probs, [*thresholds[:-1], EVERYBODY_LEAVES])


@pytest.mark.parametrize("is_used_before", [True, False])
def test_a_predictor_keeps_the_variables_that_it_was_made_with(tiny_network, is_used_before):
    """As where training goes on with the state that the variables are of, and donates it."""
    model, variables = tiny_network
    thresholds = [0.5, 0.5, 0]
    expected = EarlyExitPredictor(model, variables, thresholds)(IMAGES[:4])
    in_jax, in_numpy = jax.tree.map(jnp.copy, variables), jax.tree.map(np.array, variables)
    predictors = [EarlyExitPredictor(model, given, thresholds) for given in (in_jax, in_numpy)]
    if is_used_before:
        for predictor in predictors:
            predictor(IMAGES[:4])
    jax.tree.map(lambda array: array.delete(), in_jax)
    jax.tree.map(lambda array: array.fill(0), in_numpy)
    for predictor in predictors:
        jax.tree.map(np.testing.assert_array_equal, predictor(IMAGES[:4]), expected)


def test_the_caller_keeps_its_thresholds(tiny_network):
    thresholds = np.float32([0.5, 0.5, 0.5])
    predictor = EarlyExitPredictor(*tiny_network, thresholds)
    assert thresholds[-1] == np.float32(0.5)
    assert predictor.thresholds[-1] == EVERYBODY_LEAVES
    assert max(BATCH_SIZES) == 256
