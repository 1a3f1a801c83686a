"""What a program does is counted in its text: of this machine's compiler and of a TPU's."""

import jax
import jax.numpy as jnp

from l2w_jax.benchmark import program

# As the TPU's compiler prints: tiled layouts, tuples of results, asynchronous pairs.
TPU_PROGRAM = """\
HloModule jit_f, is_scheduled=true

%fused_computation (param_0: f32[8]) -> f32[8] {
  %param_0 = f32[8]{0:T(128)} parameter(0)
  ROOT %copy.9 = f32[8]{0:T(128)} copy(%param_0)
}

%body (arg: (s32[], f32[8])) -> (s32[], f32[8]) {
  %arg = (s32[]{:T(128)}, f32[8]{0:T(128)}) parameter(0)
  %gte = f32[8]{0:T(128)} get-tuple-element(%arg), index=1
  %all-gather.1 = f32[32]{0:T(128)} all-gather(%gte), dimensions={0}
  ROOT %tuple.1 = (s32[]{:T(128)}, f32[8]{0:T(128)}) tuple(%gte, %gte)
}

ENTRY %main (p0: f32[8], p1: bf16[2,3]) -> f32[8] {
  %p0 = f32[8]{0:T(128)} parameter(0)
  %p1 = bf16[2,3]{1,0:T(8,128)(2,1)} parameter(1)
  %copy-start = (f32[8]{0:T(128)S(1)}, f32[8]{0:T(128)}, u32[]{:S(2)}) copy-start(%p0)
  %copy-done = f32[8]{0:T(128)S(1)} copy-done(%copy-start)
  %copy.1 = bf16[2,3]{0,1:T(8,128)(2,1)} copy(%p1)
  %all-reduce.1 = (f32[8]{0:T(128)}, bf16[2,3]{1,0:T(8,128)(2,1)}) all-reduce(%copy-done, %p1)
  %all-reduce.2 = f32[4]{0:T(128)} all-reduce(%p0), replica_groups={}
  %while.1 = (s32[]{:T(128)}, f32[8]{0:T(128)}) while(%t), condition=%condition, body=%body, \
metadata={op_name="jit(f)/while"}
  ROOT %fusion.1 = f32[8]{0:T(128)} fusion(%p0), kind=kLoop, calls=%fused_computation
}

%condition (arg: (s32[], f32[8])) -> pred[] {
  %arg = (s32[]{:T(128)}, f32[8]{0:T(128)}) parameter(0)
  ROOT %constant.1 = pred[]{:T(512)} constant(true)
}
"""


def test_kernels_are_what_computes_or_copies():
    def function(x, y):
        return jnp.sort(x) @ y, x

    shape = jax.ShapeDtypeStruct((4, 4), jnp.float32)
    text = jax.jit(function).lower(shape, shape).compile().as_text()
    # The sort, the product, and the copy of the argument that is returned.
    assert program.num_kernels(text) == 3


def test_kernels_of_both_branches_of_a_condition_count():
    def function(choice, x):
        return jax.lax.cond(choice, lambda x: jnp.sort(x) @ x, lambda x: x @ jnp.sort(x.T), x)

    shapes = jax.ShapeDtypeStruct((), bool), jax.ShapeDtypeStruct((4, 4), jnp.float32)
    text = jax.jit(function).lower(*shapes).compile().as_text()
    # In each branch a sort and a product.
    assert program.num_kernels(text) >= 4


def test_what_is_waited_for_later_is_one_kernel():
    # A prefetch, a copy, two all-reduces and a fusion; in the loop an all-gather.
    assert program.num_kernels(TPU_PROGRAM) == 6


def test_what_a_loop_holds_counts_in_every_pass():
    def twice(x, _):
        return jax.lax.scan(lambda y, _: (jnp.sort(y) @ y, None), x, length=2)[0], None

    def function(x, length):
        return jax.lax.scan(twice, x, length=length)[0]

    shape = jax.ShapeDtypeStruct((4, 4), jnp.float32)
    texts = [
        jax.jit(function, static_argnums=1).lower(shape, length).compile().as_text()
        for length in (3, 4, 5)
    ]
    assert all(map(program.has_loops, texts))
    kernels, traffic = (
        [count(text) for text in texts] for count in (program.num_kernels, program.memory_traffic)
    )
    # A pass sorts and multiplies twice, and each touches arrays of 16 floats.
    assert kernels[1] - kernels[0] == kernels[2] - kernels[1] >= 4
    assert traffic[1] - traffic[0] == traffic[2] - traffic[1] >= 4 * 2 * 16 * 4


def test_passes_of_a_tpus_loop_are_those_up_to_which_its_condition_counts():
    counting = (
        "  %constant.1 = s32[]{:T(128)} constant(3)\n"
        "  %gte.2 = s32[]{:T(128)} get-tuple-element(%arg), index=0\n"
        "  ROOT %lt.1 = pred[]{:T(512)} compare(%gte.2, %constant.1), direction=LT\n"
    )
    text = TPU_PROGRAM.replace("  ROOT %constant.1 = pred[]{:T(512)} constant(true)\n", counting)
    gathered = {"count": 3, "bytes": 3 * 32 * 4}
    assert program.collectives(text)["all-gather"] == gathered
    # Two more gathers, and the comparison.
    assert program.num_kernels(text) == 6 + 2 + 1
    cycles = text.replace("dimensions={0}", 'dimensions={0}, {"estimated_cycles":"1824"}')
    assert program.estimated_cycles(cycles) == 3 * 1824


def test_a_program_without_loops_has_none():
    text = jax.jit(jnp.sin).lower(jax.ShapeDtypeStruct((4,), jnp.float32)).compile().as_text()
    assert not program.has_loops(text)


def test_convolutions_that_only_names_tell_apart_are_one():
    def computation(name, convolved):
        return (
            f"%{name} (param: f32[8,8]) -> f32[8,8] {{\n"
            f'  %param = f32[8,8]{{1,0}} parameter(0), metadata={{op_name="{name}"}}\n'
            f"  ROOT %{convolved} = f32[8,8]{{1,0}} convolution(%param, %param), dims=bf_io->bf, "
            f'metadata={{op_name="{convolved}"}}\n'
            "}\n\n"
        )

    text = computation("a", "c.1") + computation("b", "c.2")
    text += (
        "%copied (q: f32[8,8]) -> f32[8,8] {\n"
        "  %q = f32[8,8]{1,0} parameter(0)\n"
        "  ROOT %copy.1 = f32[8,8]{1,0} copy(%q)\n"
        "}\n\n"
        "ENTRY %main (p: f32[8,8]) -> f32[8,8] {\n"
        "  %p = f32[8,8]{1,0} parameter(0)\n"
        "  %x = f32[8,8]{1,0:S(1)} fusion(%p), kind=kOutput, calls=%a\n"
        "  %y = f32[8,8]{1,0:S(1)} fusion(%p), kind=kOutput, calls=%b\n"
        "  %copied.1 = f32[8,8]{1,0} fusion(%p), kind=kLoop, calls=%copied\n"
        "  ROOT %z = f32[8,8]{1,0} fusion(%x), kind=kOutput, calls=%b\n"
        "}\n"
    )
    # The last one reads from another memory.
    assert program.num_convolutions(text) == {"convolutions": 3, "distinct_convolutions": 2}


def test_collectives_count_with_the_bytes_of_all_their_results():
    assert program.collectives(TPU_PROGRAM) == {
        "all-gather": {"count": 1, "bytes": 32 * 4},
        "all-reduce": {"count": 2, "bytes": 8 * 4 + 6 * 2 + 4 * 4},
    }


def test_an_exchange_that_is_spread_over_fusions_counts_once():
    text = TPU_PROGRAM.replace(
        "  ROOT %copy.9",
        '  %all-gather.7 = f32[32]{0:T(128)} all-gather(%param_0), attributes={chain_id="0"}\n'
        "  ROOT %copy.9",
    ).replace("all-gather(%gte), ", 'all-gather(%gte), attributes={chain_id="0"}, ')
    assert program.collectives(text)["all-gather"] == {"count": 1, "bytes": 32 * 4}


def test_relayouts_and_prefetches_count_apart_and_not_inside_a_fusion():
    assert program.num_copies(TPU_PROGRAM) == {"copies": 1, "prefetches": 1}


def test_bytes_of_types_are_those_of_all_their_arrays():
    assert program.num_bytes("(f32[2,3]{1,0:T(8,128)}, bf16[], pred[5]{0}, s4[4]{0})") == 33


def test_an_exchange_that_is_waited_for_later_counts_once():
    text = (
        "ENTRY %main (p0: f32[8]) -> f32[32] {\n"
        "  %begun = (f32[8]{0}, f32[32]{0}) all-gather-start(%p0), dimensions={0}\n"
        "  ROOT %done = f32[32]{0} all-gather-done(%begun)\n"
        "}\n"
    )
    assert program.collectives(text) == {"all-gather": {"count": 1, "bytes": 32 * 4}}


def test_traffic_of_what_is_waited_for_later_is_that_of_what_is_done_at_once():
    # A gather that is begun names what it reads beside what it writes; a sum does not.
    gathered = "  %begun.1 = (f32[8]{0}, f32[32]{0}) all-gather-start(%p0), dimensions={0}\n"
    added = "  %begun.2 = f32[8]{0} all-reduce-start(%p0), to_apply=%add\n"
    before = program.memory_traffic(TPU_PROGRAM)
    for begun, touched in ((gathered, 8 + 32), (added, 8 + 8)):
        text = TPU_PROGRAM.replace("  %copy.1", begun + "  %copy.1")
        assert program.memory_traffic(text) == before + 4 * touched


def test_traffic_is_what_is_read_from_and_written_to_the_main_memory():
    prefetched = 8 * 4
    relaid = 2 * 6 * 2
    # All-reduces, one of them of what was prefetched, and an all-gather in a loop.
    exchanged = (8 * 4 + 6 * 2 + 6 * 2) + (4 * 4 + 8 * 4) + (32 * 4 + 8 * 4)
    fused = 2 * 8 * 4
    assert program.memory_traffic(TPU_PROGRAM) == prefetched + relaid + exchanged + fused


def test_traffic_of_a_product_is_its_factors_and_itself():
    shapes = jax.ShapeDtypeStruct((8, 16), jnp.float32), jax.ShapeDtypeStruct((16, 4), jnp.float32)
    text = jax.jit(jnp.dot).lower(*shapes).compile().as_text()
    assert program.memory_traffic(text) == 4 * (8 * 16 + 16 * 4 + 8 * 4)


def test_of_an_array_that_is_prefetched_in_part_the_part_counts():
    slice_start = (
        "  %slice-start = ((f32[8]{0:T(128)}), f32[2]{0:T(128)S(1)}, s32[]{:S(2)}) "
        "slice-start(%p0), slice={[0:2]}\n"
    )
    text = TPU_PROGRAM.replace("  %copy.1", slice_start + "  %copy.1")
    before = program.memory_traffic(TPU_PROGRAM)
    assert program.memory_traffic(text) == before + 2 * 4
    assert program.num_copies(text) == {"copies": 1, "prefetches": 2}


def test_what_is_called_counts():
    called = "  %call.1 = f32[8]{0:T(128)} call(%p0), to_apply=%fused_computation\n"
    text = TPU_PROGRAM.replace("  %copy.1", called + "  %copy.1")
    assert program.num_copies(text) == {"copies": 2, "prefetches": 1}


def test_cycles_are_those_of_all_kernels_that_have_an_estimate():
    of_a_copy = ', backend_config={"window_config":{"estimated_cycles":"1824"}}'
    lines = [
        line + of_a_copy if " copy(" in line or " fusion(" in line else line
        for line in TPU_PROGRAM.splitlines()
    ]
    num_kernels = sum(of_a_copy in line for line in lines)
    assert num_kernels > 1
    assert program.estimated_cycles("\n".join(lines)) == 1824 * num_kernels
    assert program.estimated_cycles(TPU_PROGRAM) == 0
