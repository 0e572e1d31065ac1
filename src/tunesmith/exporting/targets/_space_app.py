"""A page that chats with one GGUF file on a processor: llama.cpp answers within this process, Gradio shows it.

Start it with `python app.py`. Nothing is counted, kept or sent anywhere; replies are shown as plain text.
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
STOP: list[str] = []  # texts that end a reply
SYSTEM = ""  # what the model is told before every conversation
LONGEST = 4 * CONTEXT  # characters of a message; a token has about four
WAITING = 16  # people in the queue; one is answered at a time


def model_file() -> str:
    """Where the model lies, fetched once where it is not beside this file."""
    beside = Path(__file__).with_name(FILE)
    if beside.exists() or not REPO:
        return str(beside)
    from huggingface_hub import hf_hub_download

    return str(hf_hub_download(REPO, FILE))


def threads() -> int:
    """As many as there are cores for this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def opened() -> Any:
    """llama.cpp with the model loaded. It listens on a file of this user's own, so that no port is opened."""
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
    """A turn of Gradio's history as llama.cpp takes it."""
    content = turn["content"]
    text = content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
    return {"role": turn["role"], "content": text}


def pieces(server: Any, messages: list[dict[str, str]]) -> Iterator[str]:
    """The likeliest reply, longer from piece to piece. It is broken off when nobody asks for the next one."""
    heard: queue.Queue[dict[str, Any] | None] = queue.Queue()
    gone = threading.Event()

    def hear(piece: dict[str, Any]) -> bool:
        heard.put(piece)
        return gone.is_set()

    def ask() -> None:
        wish = {"messages": messages, "max_tokens": LIMIT, "stop": STOP, "stream": True, "reasoning_format": "auto"}
        greedy = {"temperature": 0.0, "samplers": ["top_k"], "top_k": 1}
        server.handle_chat_completions(wish | greedy, hear)
        heard.put(None)

    threading.Thread(target=ask, daemon=True).start()
    text = ""
    try:
        while (piece := heard.get()) is not None:
            if "choices" not in piece:
                raise gr.Error(f"The model cannot answer: {piece.get('message', piece)}")
            text += "".join(choice["delta"].get("content") or "" for choice in piece["choices"])
            yield text.lstrip()
    finally:
        gone.set()


def page(server: Any) -> gr.ChatInterface:
    """The page, with one named endpoint, /chat."""

    def reply(message: str, history: list[dict[str, Any]]) -> Iterator[str]:
        if len(message) > LONGEST:
            raise gr.Error(f"A message has at most {LONGEST:,} characters.")
        told = [{"role": "system", "content": SYSTEM}] if SYSTEM else []
        yield from pieces(server, [*told, *map(said, history), {"role": "user", "content": message}])

    return gr.ChatInterface(
        reply,
        chatbot=gr.Chatbot(
            render_markdown=False, sanitize_html=True, allow_tags=False, latex_delimiters=[], buttons=["copy"]
        ),
        textbox=gr.Textbox(placeholder="Your question", max_length=LONGEST),
        title=NAME,
        description="It can be wrong. What you write goes to this machine only, and is not kept.",
        flagging_mode="never",
        analytics_enabled=False,
        concurrency_limit=1,
        api_name="chat",
    )


if __name__ == "__main__":
    page(opened()).queue(max_size=WAITING).launch(
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),  # none is fetched
        footer_links=["api"],
        ssr_mode=False,
        enable_monitoring=False,
    )
