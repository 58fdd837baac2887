"""An engine's arguments, as its own parser would read them. Which options there are is not known here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def options(args: Sequence[str]) -> Iterator[tuple[int, str, str]]:
    """Each argument, taken for an option: its place, its name, and its value: what follows `=`, or else the next
    argument. What is an option's value comes as an option, too; it has no name that anybody looks for.

    >>> list(options(["-tp", "4", "--max_model_len=8"]))
    [(0, '-tp', '4'), (1, '4', '--max_model_len=8'), (2, '--max-model-len', '8')]
    """
    for index, argument in enumerate(args):
        written, equals, value = argument.partition("=")
        # vLLM takes either spelling.
        yield (
            index,
            written.replace("_", "-"),
            value if equals else next(iter(args[index + 1 : index + 2]), ""),
        )
