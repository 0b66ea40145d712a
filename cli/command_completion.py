"""Completion of this command line for a shell: commands, their options, the values of options, files.

    source <(imae completion bash)                      # in ~/.bashrc
    source <(imae completion zsh)                       # in ~/.zshrc, after compinit

The script holds all words, as the parsers have them, so that the shell starts no Python at the Tab key. Print
it again after an update.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterable

from imae.cli import main

SHELLS = ("bash", "zsh")
# Where a word is completed: `words` are those of the command or of the value, and where none fits, files.
SCRIPT = """\
_imae() {
    local current=${COMP_WORDS[COMP_CWORD]} previous= command=${COMP_WORDS[1]//_/-} known=
    COMPREPLY=()
    if [ "$COMP_CWORD" -le 1 ]; then
        COMPREPLY=($(compgen -W COMMANDS -- "$current"))
        return
    fi
    previous=${COMP_WORDS[COMP_CWORD-1]}
    case "$command $previous" in
VALUES
    *)
        case "$command" in
OPTIONS
        esac ;;
    esac
    COMPREPLY=($(compgen -W "$known" -- "$current"))
}
complete -o bashdefault -o default -F _imae imae
"""
ZSH = "autoload -U +X bashcompinit && bashcompinit\n"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument("shell", choices=SHELLS, help="the shell that is to read the script")


def run(args: argparse.Namespace) -> None:
    """Print the script."""
    print((ZSH if args.shell == "zsh" else "") + script(), end="")


def script() -> str:
    """The completion for bash, which zsh reads, too."""
    options, values = [], []
    for name in main.COMMANDS:
        parser = main.make_parser(name)
        flags: list[str] = []
        for action in parser._actions:
            own = [flag for flag in action.option_strings if flag.startswith("--")]
            flags += own
            words = [str(choice) for choice in action.choices or ()]
            if words and own:
                patterns = "|".join(f'"{name} {flag}"' for flag in own)
                values.append(f"    {patterns}) known={_quoted(words)} ;;")
            elif words:
                flags += words
        options.append(f"        {name}) known={_quoted(flags)} ;;")
    text = SCRIPT.replace("COMMANDS", _quoted(main.COMMANDS), 1)
    return text.replace("VALUES", "\n".join(values), 1).replace("OPTIONS", "\n".join(options), 1)


def _quoted(words: Iterable[str]) -> str:
    return shlex.quote(" ".join(words))
