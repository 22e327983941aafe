"""The command line: ``python -m logbook``."""

from __future__ import annotations

import argparse
import sys

from logbook.entries import parse
from logbook.server import serve
from logbook.settings import top_clients
from logbook.summary import host_name, render, summarize
from logbook.traffic import traffic


def main() -> None:
    """Run one of the commands ``summary``, ``serve`` and ``demo``."""
    parser = argparse.ArgumentParser(prog="logbook", description="Summarize web server logs.")
    commands = parser.add_subparsers(dest="command", required=True)
    for command, description in (("summary", "print a summary"), ("serve", "serve a summary on port 8080")):
        subparser = commands.add_parser(command, help=description)
        subparser.add_argument("log", type=argparse.FileType("r"), help="a file in the Common Log Format, or -")
        subparser.add_argument("--names", action="store_true", help="look up the clients' host names")
    demo = commands.add_parser("demo", help="print made-up traffic")
    demo.add_argument("--lines", type=int, default=1000)
    arguments = parser.parse_args()

    if arguments.command == "demo":
        sys.stdout.writelines(traffic(arguments.lines))
        return
    with arguments.log as log:
        text = render(summarize(parse(log)), top=top_clients(), name=host_name if arguments.names else str)
    if arguments.command == "serve":
        serve(text)
    else:
        sys.stdout.write(text)


if __name__ == "__main__":
    main()
