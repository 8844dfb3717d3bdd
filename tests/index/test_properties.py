"""Whatever is drawn: a filtered search is brute force, a filter selects or is refused, and a configuration is checked."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tinybert_hf import TinyBertConfig
from tinybert_hf.cli.index import parse_conditions
from tinybert_hf.errors import InputError
from tinybert_hf.index import SearchIndex
from tinybert_hf.index.records import parse_filter

# derandomize: the same examples in every run, so that a red test is red again.
slowly = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
FIELDS = {"s": "str", "n": "int", "x": "float", "b": "bool"}
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "s": st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
    | st.sampled_from(["' OR 1=1 --", "`", "\\", '"', "é"]),
    "n": st.integers(-(2**63), 2**63 - 1) | st.integers(-2, 2),
    "x": st.floats(allow_nan=False, allow_infinity=False),
    "b": st.booleans(),
}
ROWS = 40
WIDTH = 8


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[SearchIndex, list[dict[str, Any]], np.ndarray]:
    """Records with values that are hard to quote, or without some."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(ROWS, WIDTH)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    choices: dict[str, list[Any]] = {
        "s": ["", "a", "A", "' OR 1=1 --", "`s`", "\\", '"', "é", "\u2019", "%", "_", None],
        "n": [-(2**63), -1, 0, 1, 2**63 - 1, None],
        "x": [-1.5, 0.0, 1e-300, 1e300, 0.1, None],
        "b": [True, False, None],
    }
    records = [
        {"id": str(row), "text": f"text {row}", "embedding": vectors[row]}
        | {name: values[rng.integers(len(values))] for name, values in choices.items()}
        for row in range(ROWS)
    ]
    index = SearchIndex(tmp_path_factory.mktemp("corpus") / "index")
    index.add(records)
    return index, records, vectors


def holds(record: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """By Python's own operators; a record without a value is not selected."""
    compare = {"<": lambda a, b: a < b, "<=": lambda a, b: a <= b, ">": lambda a, b: a > b, ">=": lambda a, b: a >= b}
    for name, condition in wanted.items():
        value = record[name]
        if value is None:
            return False
        if isinstance(condition, dict):
            if not all(compare[sign](value, bound) for sign, bound in condition.items()):
                return False
        elif value not in (condition if isinstance(condition, list) else [condition]):
            return False
    return True


@st.composite
def filters(draw: Any) -> dict[str, Any]:
    wanted: dict[str, Any] = {}
    for name in draw(st.lists(st.sampled_from(["s", "n", "x", "b"]), max_size=2, unique=True)):
        kinds = [VALUES[name], st.lists(VALUES[name], min_size=1, max_size=3)]
        if name in "nx":
            kinds.append(st.dictionaries(st.sampled_from(["<", "<=", ">", ">="]), VALUES[name], min_size=1, max_size=2))
        wanted[name] = draw(st.one_of(kinds))
    return wanted


@pytest.mark.slow
@slowly
@given(wanted=filters(), query=st.integers(0, ROWS - 1), top_k=st.integers(1, 2**40))
def test_a_filtered_search_is_brute_force(corpus: Any, wanted: dict[str, Any], query: int, top_k: int) -> None:
    index, records, vectors = corpus
    scores = vectors @ vectors[query]
    expected = sorted(
        (row for row in range(ROWS) if holds(records[row], wanted)), key=lambda row: float(scores[row]), reverse=True
    )
    (hits,) = index.search(None, top_k, wanted, embeddings=vectors[query : query + 1])
    assert [int(hit["id"]) for hit in hits] == expected[:top_k]
    for hit in hits:
        assert hit["score"] == pytest.approx(float(scores[int(hit["id"])]), abs=1e-5)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3) | st.sampled_from(["s", "n", ">="]), inner)
    ),
    max_leaves=6,
)


@slowly
@given(given_filter=anything)
def test_a_filter_is_taken_or_refused_with_a_message(given_filter: Any) -> None:
    try:
        conditions = parse_filter(given_filter, FIELDS)
    except InputError as error:
        assert str(error)
        return
    assert isinstance(given_filter, dict) and {name for name, _, _ in conditions} == set(given_filter)


@pytest.mark.parametrize("filter", ["[]", "null", "0", '""', "{", "[" * 50_000, '{"a":' * 50_000 + "1" + "}" * 50_000])
def test_what_is_no_object_is_refused_from_the_command_line(filter: str) -> None:
    with pytest.raises(InputError, match=r"--filter (is no JSON|must be a JSON object)") as raised:
        parse_conditions(filter)
    assert len(str(raised.value)) < 500


NUMBERS = [
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "pad_token_id"),
    *("max_position_embeddings", "type_vocab_size", "hidden_dropout_prob", "attention_probs_dropout_prob"),
    *("initializer_range", "embedding_initializer_range", "residual_initializer_range", "layer_norm_eps"),
]


@slowly
@given(
    name=st.sampled_from([*NUMBERS, "pooling", "hidden_act", "norm_position", "position_embedding_type"]),
    value=anything,
)
def test_a_configuration_is_sound_or_refused_with_the_name(tmp_path: Path, name: str, value: Any) -> None:
    entries = TinyBertConfig(hidden_size=48).to_dict() | {name: value}
    try:
        config = TinyBertConfig.from_dict(entries)
    except ValueError as error:
        assert name in str(error) or "num_attention_heads" in str(error)
        return
    assert config.hidden_size % config.num_attention_heads == 0
    if name in NUMBERS:
        assert math.isfinite(getattr(config, name)) and getattr(config, name) >= 0
