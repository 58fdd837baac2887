"""`chat`, `generate`, `embed` and `models`: using what is served, through the same door and protocol as any service."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

import typer

from penstock.cli import rows
from penstock.cli.connection import TIMEOUT_S, Server, run
from penstock.cli.failures import USAGE, Failure
from penstock.cli.options import address, complete_deployment
from penstock.cli.output import DataFormat, clean, data, say, table
from penstock.client import Answer, InvalidRequest
from penstock.client import messages as written
from penstock.client.requests import GenerateOptions
from penstock.v1 import inference_pb2 as pb

ModelName = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="A deployment, or the name it serves its model under.",
        autocompletion=complete_deployment,
    ),
]
MaxTokens = Annotated[int | None, typer.Option("--max-tokens", min=1, help="Stop after this many tokens.")]
Temperature = Annotated[
    float | None, typer.Option("--temperature", min=0, max=2, help="0: always the likeliest token.")
]
System = Annotated[str, typer.Option("--system", help="What the model is to be.")]
JsonSchema = Annotated[
    Path | None,
    typer.Option("--json-schema", metavar="FILE", help="The answer is JSON that this schema allows."),
]
ShowUsage = Annotated[bool, typer.Option("--usage", help="Say how many tokens it took, on standard error.")]
MAX_TURNS = 1000
"""Messages that an interactive conversation remembers; far beyond any model's context."""


def chat(
    context: typer.Context,
    name: ModelName,
    prompt: Annotated[
        str | None,
        typer.Argument(metavar="PROMPT", help="What to say. Without it: a conversation, or standard input."),
    ] = None,
    system: System = "",
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    json_schema: JsonSchema = None,
    tools: Annotated[
        Path | None,
        typer.Option(
            "--tools",
            metavar="FILE",
            help="What the model may call: a JSON list of {name, description, parameters}. Calls are shown, not made.",
        ),
    ] = None,
    usage: ShowUsage = False,
) -> None:
    """Talk to a model; its tokens are shown as they come.

    Without a prompt, at a terminal, it is a conversation: an empty line or Ctrl-D ends it.

    Examples:

      penstock chat smollm2 "What is the capital of France?"

      penstock chat smollm2 --system "Answer in one word." --temperature 0

      penstock chat smollm2 "Where is the Louvre?" --json-schema city.json
    """
    options, known_tools = _options(max_tokens, temperature, json_schema), _tools(tools)
    messages = [_message(pb.ROLE_SYSTEM, system)] if system else []
    if prompt is None and not sys.stdin.isatty():
        prompt = sys.stdin.read().strip()
        if not prompt:
            raise Failure("there is no prompt: standard input is empty", USAGE)

    where = address(context)

    async def command(server: Server) -> str:
        printer = _Printer(usage)
        return await printer.show(
            server.client.stream_chat(name, messages, tools=known_tools, on_wait=printer.wait, **options)
        )

    def answer() -> str:
        return run(where, command)

    if prompt is not None:
        messages.append(_message(pb.ROLE_USER, prompt))
        answer()
        return
    # Asked outside any event loop, which would keep Ctrl-C from ending the question.
    while (said := _ask()) and len(messages) < MAX_TURNS:
        messages.append(_message(pb.ROLE_USER, said))
        messages.append(_message(pb.ROLE_ASSISTANT, answer()))


def generate(
    context: typer.Context,
    name: ModelName,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The text to go on from.")],
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    json_schema: JsonSchema = None,
    usage: ShowUsage = False,
) -> None:
    """Let a model go on from a text, without a conversation's form.

    Examples:

      penstock generate smollm2 "Once upon a time" --max-tokens 50
    """
    options = _options(max_tokens, temperature, json_schema)

    async def command(server: Server) -> None:
        printer = _Printer(usage)
        await printer.show(server.client.stream_generate(name, prompt, on_wait=printer.wait, **options))

    run(address(context), command)


def embed(
    context: typer.Context,
    name: ModelName,
    texts: Annotated[list[str], typer.Argument(metavar="TEXT...", help="What to embed.")],
) -> None:
    """Turn texts into vectors: a JSON list with one list of numbers for each text, in order.

    Examples:

      penstock embed minilm "A kitten sleeps." "The engine broke down."
    """

    async def command(server: Server) -> None:
        answer = await server.client.embed(name, texts, timeout=TIMEOUT_S)
        print(json.dumps([[round(number, 7) for number in each.values] for each in answer.embeddings]))

    run(address(context), command)


def models(
    context: typer.Context,
    output: Annotated[
        DataFormat, typer.Option("--output", "-o", help="How to show them.")
    ] = DataFormat.TABLE,
) -> None:
    """List the models that can be asked for.

    Examples:

      penstock models
    """

    async def command(server: Server) -> None:
        found = await server.client.models(timeout=TIMEOUT_S)
        if output is not DataFormat.TABLE:
            data(found, output, is_list=True)
        elif found:
            table(rows.MODELS, [rows.model_row(item) for item in found])
        else:
            say("no models found", stderr=True)

    run(address(context), command)


def _options(max_tokens: int | None, temperature: float | None, json_schema: Path | None) -> GenerateOptions:
    schema = None if json_schema is None else _read(json_schema)
    return {"max_tokens": max_tokens, "temperature": temperature, "json_schema": schema}


def _tools(path: Path | None) -> list[pb.Tool]:
    if path is None:
        return []
    try:
        found = json.loads(_read(path))
        if not isinstance(found, list):
            raise Failure(f"{path}: a JSON list of tools is accepted", USAGE)
        return written.tools(found)
    except (ValueError, RecursionError, InvalidRequest) as error:
        raise Failure(f"{path}: {error}", USAGE) from error


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise Failure(f"{path}: cannot be read: {error}", USAGE) from error


def _message(role: pb.Role.ValueType, text: str) -> pb.Message:
    return pb.Message(role=role, content=[pb.ContentPart(text=text)])


def _ask() -> str:
    try:
        return input("> ").strip()
    except (EOFError, KeyboardInterrupt):
        print()
        return ""


class _Printer:
    """Shows the first choice as it comes: its words, then what it calls. `usage`: at the end also the counts."""

    def __init__(self, usage: bool) -> None:
        self.text = ""
        self._calls: dict[int, pb.ToolCall] = {}
        self._usage = pb.Usage() if usage else None
        self._reason: pb.FinishReason.ValueType = pb.FINISH_REASON_UNSPECIFIED
        self._waiting = ""

    async def show(self, answers: AsyncIterator[Answer[Any]]) -> str:
        """Returns the text."""
        try:
            async for answer in answers:
                self._add(answer)
        finally:
            self._end()
        return self.text

    def wait(self, progress: pb.WaitProgress) -> None:
        """Says what is new while no replica can answer."""
        said = f"waiting, position {progress.position}: {progress.message}"
        if said != self._waiting:
            self._waiting = said
            say(said, style="dim", stderr=True)

    def _add(self, answer: Answer[Any]) -> None:
        self.text += answer.text
        # To a file or a pipe a model's words go as they are.
        sys.stdout.write(clean(answer.text) if sys.stdout.isatty() else answer.text)
        sys.stdout.flush()
        self._reason = answer.finish_reason or self._reason
        for part in answer.tool_calls:
            whole = self._calls.setdefault(part.index, pb.ToolCall())
            whole.name += part.name
            whole.arguments += part.arguments
        if self._usage is not None and answer.usage is not None:
            self._usage = answer.usage

    def _end(self) -> None:
        if self.text and not self.text.endswith("\n"):
            sys.stdout.write("\n")
            sys.stdout.flush()
        for whole in self._calls.values():
            say(f"{whole.name}({whole.arguments})")
        if self._reason == pb.FINISH_REASON_LENGTH:
            say("(stopped at the limit of tokens)", style="dim", stderr=True)
        if self._usage is not None:
            prompt, made = self._usage.prompt_tokens, self._usage.completion_tokens
            say(f"({prompt} tokens of prompt, {made} made)", style="dim", stderr=True)
