"""What a compiled program does, counted in its text as XLA prints it, one instruction a line.

The body of a loop counts as often as the loop passes, if the text says how often; both branches of
a condition count.
"""

import functools
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple

# The last three do only what the computations that they call do.
_WITHOUT_KERNEL = (
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "while",
    "conditional",
    "call",
)

# The result of both names what they read and what they write, in either order.
_PREFETCHES = ("copy-start", "slice-start")

_NAME = re.compile(r"%[\w.\-]+")

# Condition, body and other attributes.
_LOOP = r" while\(.*condition=%([\w.\-]+), body=%([\w.\-]+)(.*)$"

# An array that is not in the main memory.
_ELSEWHERE = re.compile(r"\w+\[[\d,]*\]\{[^}]*S\([1-9]\d*\)\}")

_COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "all-to-all",
    "collective-permute",
    "reduce-scatter",
)

_EXCHANGE = (
    rf"^ +(?:ROOT )?(?P<name>\S+) = (?P<result>\(.*?\)|\S+) (?P<kind>{'|'.join(_COLLECTIVES)})"
    r'(?:-done)?\((?:.*chain_id="(?P<chain>\d+)")?'
)


class Instruction(NamedTuple):
    """One line of a program.

    Attributes:
        operation: what it does, such as "fusion" or "all-reduce".
        result: types of its results, such as "f32[8,4]{1,0}" or "(f32[], s32[2]{0})".
        operands: types of what it reads.
        computation: of a fusion, what it computes, in the same words wherever it computes the same;
            else "".
    """

    operation: str
    result: str
    operands: tuple[str, ...]
    computation: str


def instructions(compiled_text: str) -> Iterator[Instruction]:
    """The instructions of the whole program, as often as they run; not those inside a fusion."""
    computations = _computations(compiled_text)
    times = _times(computations)
    entry = re.search(r"^ENTRY %(\S+)", compiled_text, re.MULTILINE)[1]

    @functools.cache
    def without_names(name: str) -> str:
        body = re.sub(r", (?:metadata|backend_config)=\{.*$", "", computations[name], flags=re.M)
        places = {name: place for place, name in enumerate(dict.fromkeys(_NAME.findall(body)))}
        called = {of: without_names(of[1:]) for of in places if of[1:] in computations}
        return _NAME.sub(lambda match: called.get(match[0], f"%{places[match[0]]}"), body)

    def of_computation(of: str) -> Iterator[Instruction]:
        body = computations[of]
        lines = re.findall(
            r"^ +(?:ROOT )?(%\S+) = (\(.*?\)|\S+) ([\w\-]+)\((.*?)\)(?:,(.*))?$", body, re.MULTILINE
        )
        types = {name: result for name, result, *_ in lines}
        for _, result, operation, operands, attributes in lines:
            read = tuple(types.get(name, "") for name in _NAME.findall(operands))
            fused = re.search(r" calls=%([\w.\-]+)", attributes) if operation == "fusion" else None
            computation = without_names(fused[1]) if fused else ""
            yield from [Instruction(operation, result, read, computation)] * times[of]
        called = re.findall(
            r"(?:body|condition|true_computation|false_computation)=%([\w.\-]+)", body
        )
        called += re.findall(r" call\(.*?\), to_apply=%([\w.\-]+)", body)
        for branches in re.findall(r"branch_computations=\{(.*?)\}", body):
            called += re.findall(r"%([\w.\-]+)", branches)
        for name in called:
            yield from of_computation(name)

    return of_computation(entry)


def _computations(compiled_text: str) -> dict[str, str]:
    """The lines of each computation of a program, by its name."""
    return {
        match["name"]: match["body"]
        for match in re.finditer(
            r"^(?:ENTRY )?%(?P<name>\S+) .*\{\n(?P<body>(?: .*\n)*)\}", compiled_text, re.MULTILINE
        )
    }


def _times(computations: Mapping[str, str]) -> dict[str, int]:
    """How often each computation runs: once, except within loops."""
    times = dict.fromkeys(computations, 1)
    for body in computations.values():
        for condition, passed, rest in re.findall(_LOOP, body, re.MULTILINE):
            passes = _num_passes(computations.get(condition, ""), rest)
            for name in _reached(computations, passed):
                times[name] *= passes
    return times


def _num_passes(condition: str, attributes: str) -> int:
    """How often a loop passes; 1 where the program does not say.

    A GPU's and a CPU's compiler write it beside the loop. In a TPU's program it is the one number
    that the condition compares with, since JAX counts from 0.
    """
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', attributes)
    limits = [known[1]] if known else re.findall(r" s32\[\]\S* constant\((\d+)\)", condition)
    return int(limits[0]) if len(limits) == 1 else 1


def _reached(computations: Mapping[str, str], first: str) -> set[str]:
    """A computation and all that it calls, directly or not."""
    reached, left = set(), [first]
    while left:
        name = left.pop()
        if name in computations and name not in reached:
            reached.add(name)
            left += [called[1:] for called in _NAME.findall(computations[name])]
    return reached


def has_loops(compiled_text: str) -> bool:
    """Whether a program has loops, of which XLA's own counts include one pass only."""
    return re.search(_LOOP, compiled_text, re.MULTILINE) is not None


def kernels(compiled_text: str) -> Iterator[Instruction]:
    """The instructions of a program that compute or move something, each fusion as one.

    Where one instruction begins something and another waits for it, the first one counts.
    """
    for instruction in instructions(compiled_text):
        operation = instruction.operation
        if operation not in _WITHOUT_KERNEL and not operation.endswith("-done"):
            yield instruction


def num_kernels(compiled_text: str) -> int:
    """How many `kernels` a program has."""
    return sum(1 for _ in kernels(compiled_text))


def num_copies(compiled_text: str) -> dict[str, int]:
    """Instructions that only move an array: {"copies": ..., "prefetches": ...}.

    Copies are made to change a layout or to keep what is overwritten. Prefetches copy an array, or
    part of it, into a faster memory, and are waited for later.
    """
    counts = Counter(instruction.operation for instruction in instructions(compiled_text))
    return {"copies": counts["copy"], "prefetches": sum(counts[name] for name in _PREFETCHES)}


def num_convolutions(compiled_text: str) -> dict[str, int]:
    """Kernels that convolve: {"convolutions": ..., "distinct_convolutions": ...}.

    Those that compute the same from arrays of the same types, in the same memories, count as one
    distinct convolution: a TPU's compiler compiles one for all of them.
    """
    found = [
        instruction
        for instruction in instructions(compiled_text)
        if instruction.operation == "convolution" or " convolution(" in instruction.computation
    ]
    return {"convolutions": len(found), "distinct_convolutions": len(set(found))}


def estimated_cycles(compiled_text: str) -> int:
    """Clock cycles that a TPU's compiler expects all kernels to take, one after the other.

    It has no estimate of exchanges between devices, prefetches and a few others.
    """
    computations = _computations(compiled_text)
    times = _times(computations)
    return sum(
        times[name] * sum(map(int, re.findall(r'"estimated_cycles":"(\d+)"', body)))
        for name, body in computations.items()
    )


def memory_traffic(compiled_text: str) -> int:
    """Bytes that a program's instructions read from and write to the device's main memory.

    What a TPU keeps in its vector memory, where the layout says "S(1)", does not count. An array
    that is read or written in part counts as a whole, unless a part of it is prefetched; what a
    cache would save counts too.
    """
    return sum(map(_traffic, kernels(compiled_text)))


def _traffic(instruction: Instruction) -> int:
    """Bytes of the main memory that one instruction reads and writes."""
    if instruction.operation in _PREFETCHES:
        ends = re.findall(r"\w+\[[\d,]*\]\{[^}]*\}", instruction.result)[:2]
        return min(map(num_bytes, ends)) * sum(not _ELSEWHERE.match(end) for end in ends)
    names_its_operands = instruction.operation.endswith("-start")
    if names_its_operands and instruction.operation != "all-reduce-start":
        touched = (instruction.result,)
    else:
        touched = (instruction.result, *instruction.operands)
    return sum(num_bytes(_ELSEWHERE.sub("", types)) for types in touched)


def collectives(compiled_text: str) -> dict[str, dict[str, int]]:
    """Exchanges between devices: {kind: {"count": ..., "bytes": of their results}}.

    A TPU's compiler may spread an exchange over many fusions; it appears in each of them, as a link
    of one chain. A chain counts once; an exchange that is waited for later counts where it is done.
    """
    computations = _computations(compiled_text)
    times = _times(computations)
    found: dict[str, dict[str, int]] = {}
    seen = set()
    for name, body in computations.items():
        for match in re.finditer(_EXCHANGE, body, re.MULTILINE):
            kind, exchange = match["kind"], match["chain"] or match["name"]
            if (kind, exchange) not in seen:
                seen.add((kind, exchange))
                total = found.setdefault(kind, {"count": 0, "bytes": 0})
                total["count"] += times[name]
                total["bytes"] += times[name] * num_bytes(match["result"])
    return dict(sorted(found.items()))


def num_bytes(types: str) -> int:
    """Size of all arrays that `types` names: "(f32[2,3]{1,0}, bf16[])" has 26 bytes.

    Padding of a device's layout is left out.
    """
    total = 0
    for kind, digits, shape in re.findall(r"\b([a-z]+)(\d*)\w*\[([\d,]*)\]", types):
        bits = 8 if kind == "pred" else int(digits or 0)
        total += math.prod(int(side) for side in shape.split(",") if side) * bits
    return total // 8
