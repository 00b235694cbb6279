"""``modelreg completion``: makes a shell complete commands, flags and the names of models.

click's script for bash puts a name into the command line as it is, where its spaces make several arguments of it, and takes the words of the
line as bash breaks them, at colons for example. So the one for bash is modelreg's own: it passes on the line up to the cursor, and the words are
found, and names quoted, here.
"""

from __future__ import annotations

import os
import re

import click
from click.shell_completion import BashComplete, CompletionItem, add_completion_class, get_completion_class

from modelreg.cli.output import Output

_BASH = """\
%(complete_func)s() {
    local line
    COMPREPLY=()
    while IFS= read -r line; do
        case $line in
        file,*) compopt -o default ;;
        dir,*) compopt -o dirnames ;;
        plain,*) COMPREPLY+=("${line#plain,}") ;;
        esac
    done < <(env %(complete_var)s=bash_complete COMP_LINE="${COMP_LINE:0:COMP_POINT}" COMP_WORD="$2" "$1")
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""

_SAFE = re.compile(r"[\w@%+=:,./-]", re.ASCII)


class Bash(BashComplete):
    """bash, which is given the line as it was typed, and names as they have to be typed."""

    source_template = _BASH

    def get_completion_args(self) -> tuple[list[str], str]:
        """The words before the one at the cursor, and that one's beginning."""
        words = split(os.environ["COMP_LINE"])
        self._word = words[-1]
        return [word.text for word in words[1:-1]], self._word.text

    def format_completion(self, item: CompletionItem) -> str:
        """A line for the script. What bash keeps of the word, up to a colon for example, isn't repeated."""
        value = item.value
        if item.type == "plain":
            typed = self._word.typed
            kept = typed[: len(typed) - len(os.environ.get("COMP_WORD", ""))]
            value = quoted(value.removeprefix(split(kept)[-1].text), self._word.quote)
        return f"{item.type},{value}"


class Word:
    """A word of a command line: as it was typed, what it means, and the quote that is open at its end."""

    def __init__(self, typed: str = "", text: str = "", quote: str = "") -> None:
        self.typed = typed
        self.text = text
        self.quote = quote


def split(line: str) -> list[Word]:
    """The words of a line that may end anywhere; the last one is empty after a space."""
    words = [Word()]
    characters = iter(line)
    for character in characters:
        word = words[-1]
        if character in " \t\n" and not word.quote:
            if word.typed:
                words.append(Word())
            continue
        word.typed += character
        if character == word.quote:
            word.quote = ""
        elif character in "'\"" and not word.quote:
            word.quote = character
        elif character == "\\" and word.quote != "'":
            escaped = next(characters, "")
            word.typed += escaped
            word.text += escaped if not word.quote or escaped in '"\\$`' else f"\\{escaped}"
        else:
            word.text += character
    return words


def quoted(text: str, quote: str) -> str:
    """A text as it's typed after this opening quote, or without one. Readline closes the quote, unless the text ends with one."""
    if quote == "'":
        typed = text.replace("'", "'\\''")
    elif quote == '"':
        typed = re.sub(r'(["\\$`])', r"\\\1", text)
    else:
        typed = "".join(
            character if _SAFE.match(character) or not character.isascii() else f"\\{character}" for character in text
        )
    return typed + quote if quote and typed.endswith(quote) else typed


add_completion_class(Bash)


@click.command("completion")
@click.argument("shell", metavar="SHELL", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion_command(context: click.Context, shell: str) -> None:
    """Print the script that makes SHELL (bash, zsh or fish) complete commands, flags and models.

    For bash, put this into ~/.bashrc: eval "$(modelreg completion bash)"
    """
    Output().needed()
    root = context.find_root()
    kind = get_completion_class(shell)
    assert kind is not None, "click knows these shells"
    click.echo(kind(root.command, {}, "modelreg", "_MODELREG_COMPLETE").source())
