"""How the commands of this program begin and end."""

import argparse
import sys

from utils import UserError


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises UserError instead of printing its usage and leaving."""

    def error(self, message):
        raise UserError(f"{message} ({self.prog} --help lists the flags)")


def run_tool(command, parser, argv=None):
    """Parse argv and call command(args), for the tools that are command lines of their own. Returns the exit code.

    0; 2 on bad input (UserError), 1 on a disk or a network that fails (OSError), each with one line on stderr; 130
    when interrupted.
    """
    try:
        command(parser.parse_args(argv))
    except (UserError, OSError) as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    except KeyboardInterrupt:
        return 130
    return 0
