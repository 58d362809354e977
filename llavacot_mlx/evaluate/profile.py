"""How a benchmark is run: decoding, pictures, what of an answer is scored, and by which rules."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from llavacot_mlx.checked import KeyRules, Range, checked, named, read_yaml
from llavacot_mlx.errors import UserError
from llavacot_mlx.evaluate.conclusion import AnswerFrom
from llavacot_mlx.evaluate.option_inference import Scorer
from llavacot_mlx.generate.sampling_params import PUBLISHED_SAMPLING
from llavacot_mlx.plan.plan import Plan, Settings, make_plan


@dataclass(frozen=True)
class Profile:
    """One way to run the benchmarks. The defaults are those of the paper."""

    name: str = "paper"
    search: str | None = None
    """A method's name; by default one sampled answer, or greedy at temperature 0."""
    candidates: int | None = None
    judge: str | None = None
    temperature: float = PUBLISHED_SAMPLING.temperature
    top_p: float = PUBLISHED_SAMPLING.top_p
    max_tokens: Annotated[int, Range(min=1, max=2**31 - 1)] = 2048
    jpeg_quality: Annotated[int, Range(min=1, max=95)] | None = 75
    """Pictures are saved as JPEG and read again, as VLMEvalKit of 2024 does. None: as they are."""
    answer_from: AnswerFrom = AnswerFrom.CONCLUSION
    scorer: Scorer = Scorer.VLMEVAL_2024

    def plan(self) -> Plan:
        """The search plan. Raises UserError for settings that contradict each other."""
        temperature = self.temperature
        top_p = self.top_p if temperature or self.search not in (None, "greedy") else None
        if self.search == "greedy":
            temperature = 0.0
        return make_plan(
            Settings(self.search, self.candidates, None, self.judge, temperature, top_p)
        )

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @property
    def digest(self) -> str:
        """Equal for profiles that give the same answers and scores, whatever their names."""
        value = {key: part for key, part in self.to_dict().items() if key != "name"}
        return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


PROFILES = {
    "paper": Profile(),
    "paper-greedy": Profile("paper-greedy", temperature=0.0),
}


def find_profile(name: str) -> Profile:
    """Returns a profile by its name, or reads one from a YAML file.

    Raises UserError that names the file and the key.
    """
    if name in PROFILES:
        return PROFILES[name]
    file = Path(name).expanduser()
    if not file.exists():
        raise UserError(f"profile {name}: there are {', '.join(PROFILES)}, or a YAML file")
    profile = profile_from_dict({"name": file.stem, **_object(file)}, str(file))
    with named(file):
        profile.plan()
    return profile


def profile_from_dict(value: Any, where: str) -> Profile:
    """Makes a profile from parsed YAML or JSON. Raises UserError that begins with `where`."""
    with named(where):
        return checked(Profile, value, KeyRules(dashes=True, float_texts=True))


def _object(file: Path) -> dict[str, Any]:
    value = read_yaml(file)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UserError(f"{file}: expected lines like `temperature: 0.6`")
    return value
