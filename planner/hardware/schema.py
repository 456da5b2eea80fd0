"""What a user's cluster file may say, checked field by field. Pydantic is imported here and nowhere else in the
package, because it costs more than reading a built-in spec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from planner.errors import InputError, nearest
from planner.hardware.cards import INTEGERS, PRECISIONS, RATES, RESERVE, load_card, value_of
from planner.hardware.gpus import MOST_GPUS

MOST_MISTAKES = 12
"""Listed in one message; the rest are counted."""


def _figure(value: Any) -> Any:
    """The number of a figure, whether bare or with its source."""
    if isinstance(value, Mapping):
        extra = sorted(set(map(str, value)) - {"value", "source"})
        if extra:
            raise ValueError(f"has the unknown key '{extra[0]}'; a figure is a number or {{value, source}}")
        if "value" not in value:
            raise ValueError("needs a value; a figure is a number or {value, source}")
        value = value["value"]
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


def _whole(value: Any) -> Any:
    """3.2e10 written as a float or as text (YAML reads 80e9 as text) is a whole number of bytes."""
    value = _figure(value)
    try:
        number = float(value)
    except (TypeError, ValueError):
        return value
    return int(number) if number.is_integer() else value


Count = Annotated[int, BeforeValidator(_whole), Field(ge=1, le=MOST_GPUS)]
Bytes = Annotated[int, BeforeValidator(_whole), Field(ge=0, le=10**16)]
PositiveBytes = Annotated[int, BeforeValidator(_whole), Field(ge=2**20, le=10**16)]


def _none_or_rate(value: float) -> float:
    if 0 < value < LEAST_RATE:
        raise ValueError(f"must be 0 or at least {LEAST_RATE:.0f}")
    return value


LEAST_RATE = 1e6
"""A twelfth of what Fast Ethernet carries [bytes/s]: less is a slip of units, and its seconds have no sense."""
Rate = Annotated[float, BeforeValidator(_figure), Field(ge=LEAST_RATE, le=1e18, allow_inf_nan=False)]
RateOrNone = Annotated[
    float, BeforeValidator(_figure), AfterValidator(_none_or_rate), Field(ge=0, le=1e18, allow_inf_nan=False)
]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Figures(_Strict):
    sold_bytes: PositiveBytes | None = None
    capacity_bytes: PositiveBytes | None = None
    multiprocessors: Annotated[int, BeforeValidator(_whole), Field(ge=0, le=100_000)] | None = None
    gpus_per_node: Count | None = None
    scale_up_domain: Count | None = None
    host_bytes_per_node: Bytes | None = None
    memory_bytes_per_second: Rate | None = None
    scale_up_bytes_per_second: RateOrNone | None = None
    pcie_bytes_per_second: Rate | None = None
    network_bytes_per_second: RateOrNone | None = None


class Reserve(_Strict):
    context: Bytes | None = None
    collectives: Bytes | None = None
    libraries: Bytes | None = None
    fragmentation: Bytes | None = None


class CardFile(_Strict):
    """A card: all of it, or what differs from the built-in card that `like` names."""

    like: str | None = None
    name: Annotated[str, Field(min_length=1, max_length=60)] | None = None
    aliases: list[str] = []
    vendor: str | None = None
    architecture: str | None = None
    figures: Figures = Figures()
    scale_up: Literal["nvlink", "pcie", "xgmi", "hccs", "roce", "none"] | None = None
    scale_up_pairwise: bool | None = None
    network: Literal["infiniband", "ethernet", "none"] | None = None
    flops: dict[Literal["fp32", "tf32", "fp16", "bf16", "fp8", "fp4", "int8"], Rate] | None = None
    reserve_bytes: Bytes | Reserve | None = None
    time_note: Annotated[str, Field(max_length=300)] | None = None

    @model_validator(mode="after")
    def _complete(self) -> CardFile:
        if self.like is not None:
            _known_card(self.like)
            return self
        missing = [
            n for n in ("name", "vendor", "architecture", "scale_up", "flops", "reserve_bytes") if not _has(self, n)
        ]
        optional = ("multiprocessors", "host_bytes_per_node")
        missing += [f"figures.{n}" for n in INTEGERS + RATES if n not in optional and getattr(self.figures, n) is None]
        if missing:
            raise ValueError(f"lacks {', '.join(missing)} (or a card to take them from: `like: H100-80G`)")
        return self


def _has(model: BaseModel, name: str) -> bool:
    return getattr(model, name) is not None


def _known_card(name: str) -> str:
    try:
        return load_card(name).name
    except InputError as error:
        raise ValueError(str(error).rstrip(".")) from None


def _card_entry(value: Any) -> Any:
    if isinstance(value, str):
        _known_card(value)
        return value
    if not isinstance(value, Mapping):
        raise ValueError("must be a card's name or a mapping of its figures")
    return _with_sources(value, CardFile.model_validate(value).model_dump(exclude_none=True, exclude_unset=True))


def _with_sources(raw: Any, checked: Any) -> Any:
    """The checked content, with the user's source beside each figure that has one."""
    if not isinstance(raw, Mapping):
        return checked
    if not isinstance(checked, Mapping):
        return {"value": checked, "source": raw["source"]} if "source" in raw else checked
    return {key: _with_sources(raw.get(key), value) for key, value in checked.items()}


class Group(_Strict):
    card: Annotated[Any, BeforeValidator(_card_entry)]
    nodes: Count
    gpus_per_node: Annotated[int, BeforeValidator(_whole), Field(ge=1, le=1024)] | None = None
    domain_gpus: Annotated[int, BeforeValidator(_whole), Field(ge=1, le=MOST_GPUS)] | None = None
    network_bytes_per_second: Rate | None = None


class FabricFile(_Strict):
    kind: Literal["infiniband", "ethernet", "none"] | None = None
    bytes_per_second_per_gpu: Rate | None = None
    latency_seconds: Annotated[float, BeforeValidator(_figure), Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    oversubscription: Annotated[float, BeforeValidator(_figure), Field(ge=1, le=1000, allow_inf_nan=False)] | None = (
        None
    )
    nodes_per_leaf: Annotated[int, BeforeValidator(_whole), Field(ge=0, le=MOST_GPUS)] | None = None
    rail_optimised: Annotated[bool, BeforeValidator(value_of)] | None = None


class ClusterFile(_Strict):
    name: Annotated[str, Field(min_length=1, max_length=100)] | None = None
    aliases: list[str] = []
    description: str | None = None
    source: str | None = None
    groups: Annotated[list[Group], Field(min_length=1, max_length=1000)]
    fabric: FabricFile = FabricFile()
    calibration: dict[str, Any] | None = None


def validate_cluster(data: Mapping[str, Any], path: str) -> dict[str, Any]:
    """The file's content with plain numbers. Raises InputError that lists every mistake with its place."""
    try:
        return ClusterFile.model_validate(data).model_dump(exclude_none=True, exclude_unset=True)
    except ValidationError as error:
        mistakes = _mistakes(error)
        count = "1 mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
        more = f"; and {len(mistakes) - MOST_MISTAKES} more" if len(mistakes) > MOST_MISTAKES else ""
        raise InputError(f"{path}: {count}: {'; '.join(mistakes[:MOST_MISTAKES])}{more}.") from None


def validate_card(data: Mapping[str, Any], path: str) -> dict[str, Any]:
    """The same for a file that holds one card (the built-in ones, in the tests)."""
    try:
        return CardFile.model_validate(data).model_dump(exclude_none=True, exclude_unset=True)
    except ValidationError as error:
        raise InputError(f"{path}: {'; '.join(_mistakes(error))}.") from None


def _mistakes(error: ValidationError) -> list[str]:
    found: list[str] = []
    for item in error.errors(include_url=False):
        inner = item.get("ctx", {}).get("error")
        place = _place(item["loc"])
        if isinstance(inner, ValidationError):
            found += [f"{place}.{line}" for line in _mistakes(inner)]
            continue
        found.append(f"{place}: {_sentence(item)}")
    return list(dict.fromkeys(found))


def _place(location: tuple[int | str, ...]) -> str:
    """groups[0].card.figures.sold_bytes; pydantic's own tags for the branches of a union are left out."""
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part == "[key]" or "[" in part or part in ("Reserve", "int", "constrained-int"):
            continue
        else:
            text += f".{part}" if text else part
    return text or "the card"


def _sentence(item: Any) -> str:
    kind, given, place = item["type"], item.get("input"), item["loc"]
    if kind == "extra_forbidden":
        close = nearest(str(place[-1]), _known_keys())
        return "unknown key" + (f", did you mean {' or '.join(close[:2])}?" if close else "")
    if kind == "missing":
        return "is required"
    if kind == "value_error":
        return str(item["msg"]).removeprefix("Value error, ")
    if kind.startswith(("int_", "float_")):
        return f"must be a {'whole ' if kind.startswith('int_') else ''}number, but {_shown(given)} was given"
    message = str(item["msg"])
    text = message.removeprefix("Input should be ").replace("a valid ", "a ")
    return f"must be {text}, but {_shown(given)} was given"


def _shown(given: Any) -> str:
    text = repr(given["value"] if isinstance(given, Mapping) and "value" in given else given)
    return text if len(text) <= 40 else text[:39] + "…"


def _known_keys() -> set[str]:
    keys = {"like", *RESERVE, *PRECISIONS}
    for model in (Figures, CardFile, Group, FabricFile, ClusterFile):
        keys |= set(model.model_fields)
    return keys
