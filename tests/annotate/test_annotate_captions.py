"""Captions say what stands in the scene and never a word about the camera, whatever a model answers."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest

from sana_wm_env.train.annotate.captions import CAMERA, PROMPT, Endpoint, clean_caption
from sana_wm_env.train.data.sidecars import ClipError

PICTURE = np.full((48, 80, 3), 90, np.uint8)
SPEAKS = [
    "The camera pans left across the hall.",
    "A slow zoom reveals a window.",
    "The view moves forward past a pillar.",
    "We walk along a corridor.",
    "This video shows a kitchen.",
    "A first-person walk through a garden.",
    "A tracking shot of a street.",
    "The scene slowly rotates around a table.",
    "The perspective shifts to the right.",
    "Moving forward, a door comes closer.",
    "Handheld footage of a room.",
    "A dolly in on a red box.",
]
SILENT = [
    "A white brick room with an orange floor, a green pillar and a low grey box.",
    "A panelled hall with a tiled floor, a pan on the stove and a toy train on tracks.",
    "A stone terrace above a lake in evening light; a ladder leans against the wall.",
    "A narrow street turns between brick houses with wooden shutters.",
]


@pytest.mark.parametrize("sentence", SPEAKS)
def test_sentences_about_the_camera_are_struck(sentence):
    caption = clean_caption(f"A white room with a table. {sentence}")
    assert caption.text == "A white room with a table." and caption.struck == (sentence,)


@pytest.mark.parametrize("sentence", SILENT)
def test_sentences_about_the_scene_stay(sentence):
    assert clean_caption(sentence).text == sentence


def test_an_answer_about_the_camera_alone_leaves_none():
    caption = clean_caption("The camera moves through a hall.")
    assert caption.text == "" and "camera alone" in caption.note
    assert clean_caption("<think>the camera?</think> **A hall.**").text == "A hall."


@pytest.fixture
def server():
    """An endpoint on this machine that answers what it is told, and keeps what it was asked."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.server.asked.append((self.path, asked))
            body = self.server.answer.encode()
            self.send_response(self.server.status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.status, server.answer = [], 200, ""
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def test_an_endpoint_is_asked_with_pictures_and_never_about_the_camera(server):
    said = "A hall with pillars. The camera glides through it."
    server.answer = json.dumps({"choices": [{"message": {"content": said}}]})
    endpoint = Endpoint(f"http://127.0.0.1:{server.server_port}/v1", "see")
    caption = endpoint.describe([PICTURE, PICTURE, PICTURE])
    assert caption.text == "A hall with pillars."
    ((path, asked),) = server.asked
    assert path == "/v1/chat/completions" and asked["model"] == "see"
    kinds = [part["type"] for part in asked["messages"][0]["content"]]
    assert kinds == ["text", "image_url", "image_url", "image_url"]
    assert "Do not mention the camera" in PROMPT and CAMERA.search("the camera")


def test_answers_that_are_none_are_told(server):
    endpoint = Endpoint(f"http://127.0.0.1:{server.server_port}/v1", "see", 5)
    server.answer = "{}"
    with pytest.raises(ClipError, match="holds no message"):
        endpoint.describe([PICTURE])
    server.status = 500
    with pytest.raises(ClipError, match="no answer from"):
        endpoint.describe([PICTURE])
    with pytest.raises(ClipError, match="start it, or leave it out"):
        Endpoint("http://127.0.0.1:9/v1", "see", 5).describe([PICTURE])


@pytest.mark.parametrize("url", ["", "127.0.0.1:8000", "file:///etc"])
def test_addresses_that_are_none_are_refused(url):
    with pytest.raises(ValueError, match="wanted both, such as"):
        Endpoint(url, "see").check()
