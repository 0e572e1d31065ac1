"""A Gradio page that chats with one GGUF file on a CPU; llama.cpp runs in this process.

Start it with `python app.py`. Nothing is tracked, stored or sent anywhere; replies are shown as plain text.
"""

from __future__ import annotations

import os
import queue
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import gradio as gr
import xllamacpp

NAME = "a tuned model"
FILE = "model.gguf"  # beside this file, or in REPO
REPO = ""
LIMIT = 256  # tokens of a reply
CONTEXT = 2048  # tokens of a conversation
STOP: list[str] = []  # stop strings
SYSTEM = ""  # system message of every conversation
LONGEST = 4 * CONTEXT  # characters of a message; a token has about four
WAITING = 16  # requests in the queue; one is answered at a time


def model_file() -> str:
    """Returns the path of the model, downloaded once if it is not beside this file."""
    local_file = Path(__file__).with_name(FILE)
    if local_file.exists() or not REPO:
        return str(local_file)
    from huggingface_hub import hf_hub_download

    return str(hf_hub_download(REPO, FILE))


def threads() -> int:
    """Returns the number of CPU cores of this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def opened() -> Any:
    """Loads the model in llama.cpp, which listens on a Unix socket of this user, so no port is opened."""
    params = xllamacpp.CommonParams()
    params.model.path = model_file()
    params.n_parallel, params.n_ctx = 1, CONTEXT
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads()
    params.hostnames, params.port = [str(Path(tempfile.mkdtemp()) / "llama.sock")], 0
    params.offline, params.ui, params.fit_params = True, False, False
    params.cache_ram_mib = params.n_ctx_checkpoints = 0
    params.verbosity = 1
    return xllamacpp.Server(params)


def said(turn: dict[str, Any]) -> dict[str, str]:
    """Converts a turn of Gradio's history to llama.cpp's format."""
    content = turn["content"]
    text = content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
    return {"role": turn["role"], "content": text}


def pieces(server: Any, messages: list[dict[str, str]]) -> Iterator[str]:
    """Yields the greedy reply as it grows; generation stops when the caller stops iterating."""
    events: queue.Queue[dict[str, Any] | None] = queue.Queue()
    cancelled = threading.Event()

    def hear(piece: dict[str, Any]) -> bool:
        events.put(piece)
        return cancelled.is_set()

    def ask() -> None:
        request = {"messages": messages, "max_tokens": LIMIT, "stop": STOP, "stream": True, "reasoning_format": "auto"}
        greedy = {"temperature": 0.0, "samplers": ["top_k"], "top_k": 1}
        server.handle_chat_completions(request | greedy, hear)
        events.put(None)

    threading.Thread(target=ask, daemon=True).start()
    text = ""
    try:
        while (piece := events.get()) is not None:
            if "choices" not in piece:
                raise gr.Error(f"The model cannot answer: {piece.get('message', piece)}")
            text += "".join(choice["delta"].get("content") or "" for choice in piece["choices"])
            yield text.lstrip()
    finally:
        cancelled.set()


def page(server: Any) -> gr.ChatInterface:
    """Builds the page, with one named endpoint, /chat."""

    def reply(message: str, history: list[dict[str, Any]]) -> Iterator[str]:
        if len(message) > LONGEST:
            raise gr.Error(f"A message has at most {LONGEST:,} characters.")
        system = [{"role": "system", "content": SYSTEM}] if SYSTEM else []
        yield from pieces(server, [*system, *map(said, history), {"role": "user", "content": message}])

    return gr.ChatInterface(
        reply,
        chatbot=gr.Chatbot(
            render_markdown=False, sanitize_html=True, allow_tags=False, latex_delimiters=[], buttons=["copy"]
        ),
        textbox=gr.Textbox(placeholder="Your question", max_length=LONGEST),
        title=NAME,
        description="It can be wrong. Your messages are sent only to this machine and are not stored.",
        flagging_mode="never",
        analytics_enabled=False,
        concurrency_limit=1,
        api_name="chat",
    )


if __name__ == "__main__":
    page(opened()).queue(max_size=WAITING).launch(
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),  # no font is downloaded
        footer_links=["api"],
        ssr_mode=False,
        enable_monitoring=False,
    )
