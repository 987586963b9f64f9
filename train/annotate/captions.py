"""What a clip shows, said by a vision-language model behind an OpenAI-compatible endpoint, if there is one.

The caption describes the scene at rest and never the camera, so that the camera's motion can come from the
poses alone (SANA-WM, section on captions). Sentences that speak of it are struck out; where nothing is left
the clip keeps an empty caption, and the manifest says why.
"""

from __future__ import annotations

import base64
import io
import json
import re
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from ..data.sidecars import ClipError
from .frames import Frame

PROMPT = (
    "These pictures are from one short video. Describe the scene in one or two plain sentences: the place, "
    "what "
    "stands in it, materials, colours, light. Describe only what is at rest. Do not mention the camera, "
    "its motion, "
    "the viewpoint, the pictures or the video, and nobody's actions."
)
_WHERE = (
    r"(?:left|right|up|down|in|out|across|over|to|toward\w*|around|along|through|past|from|slowly|gently)"
)
CAMERA = re.compile(
    r"\b(?:camera\w*|viewpoint|point of view|first[- "
    r"]person|pov|footage|videos?|viewers?|lens|steadicam|handheld|"
    r"(?:the|this|each|every|first|last|final) (?:clip|frame|shot|image|picture|photo)s?|close-?up|"
    r"(?:tracking|wide|aerial|establishing|long|drone|static) shots?|shots? of|"
    rf"pan(?:s|ned|ning)? {_WHERE}|(?:slow|smooth|gentle) pan\b|tilt(?:s|ing)? {_WHERE}|zoom(?:s|ed|ing)?|"
    r"doll(?:y|ies|ied|ying) (?:in|out|shot|forward|back)\w*|"
    r"(?:we|view|scene|perspective|picture|image) (?:then |slowly |gradually |gently "
    r")*(?:moves?|turns?|glides?|"
    r"rotates?|shifts?|walks?|enters?|approach\w*|follows?|advances?|travels?|drifts?|sweeps?|orbits?)|"
    r"(?:moving|gliding|walking|turning|panning|rotating) (?:forward|backward|back|left|right|through|around|"
    r"along|past)|as (?:we|you|one) (?:move|walk|turn|go)\w*)\b",
    re.IGNORECASE,
)
LONGEST = 600
SIDE = 512


@dataclass(frozen=True)
class Caption:
    """text: "" for none. struck: sentences that spoke of the camera. note: why there is no text."""

    text: str
    struck: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Endpoint:
    """url: up to and with /v1. model: as the endpoint calls it. seconds: how long an answer may take."""

    url: str
    model: str
    seconds: float = 120.0

    def check(self) -> None:
        """ValueError if this is no address of an endpoint."""
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.netloc or not self.model:
            raise ValueError(
                f"got --caption-url {self.url!r} and --caption-model {self.model!r}; wanted both, such as "
                "http://127.0.0.1:8000/v1 and the name of a model that it serves"
            )

    def describe(self, pictures: Sequence[Frame]) -> Caption:
        """Asks for a caption of a few frames (H, W, 3). ClipError if the endpoint does not answer."""
        content: list[dict] = [{"type": "text", "text": PROMPT}]
        content += [{"type": "image_url", "image_url": {"url": _encode(picture)}} for picture in pictures]
        body = {
            "model": self.model,
            "temperature": 0,
            "max_tokens": 200,
            "messages": [{"role": "user", "content": content}],
        }
        request = urllib.request.Request(
            f"{self.url.rstrip('/')}/chat/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=self.seconds) as answer:
                said = json.load(answer)["choices"][0]["message"]["content"]
        except (urllib.error.URLError, TimeoutError, OSError) as error:
            raise ClipError(
                "no caption", f"got no answer from {self.url} ({error}); start it, or leave it out"
            ) from None
        except (KeyError, IndexError, TypeError, ValueError):
            raise ClipError("no caption", f"got an answer of {self.url} that holds no message") from None
        return clean_caption(said if isinstance(said, str) else "")


def clean_caption(said: str) -> Caption:
    """The sentences of an answer that do not speak of the camera, in one line."""
    plain = re.sub(r"[*_`#>]+", "", re.sub(r"<think>.*?</think>", "", said, flags=re.DOTALL))
    sentences = re.split(r"(?<=[.!?])\s+", " ".join(plain.split()))
    kept = [sentence for sentence in sentences if sentence and not CAMERA.search(sentence)]
    struck = tuple(sentence for sentence in sentences if sentence and CAMERA.search(sentence))
    text = " ".join(kept)[:LONGEST].strip().strip('"').strip()
    note = "" if text else ("speaks of the camera alone" if struck else "nothing was said")
    return Caption(text, struck, note)


def _encode(picture: Frame) -> str:
    image = Image.fromarray(np.ascontiguousarray(picture))
    image.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
