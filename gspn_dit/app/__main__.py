"""Sample from a run in a browser: python -m gspn_dit.app RUN_OR_ID"""

import argparse
import os
import socket
import threading
from collections.abc import Sequence

from gspn_dit import errors
from gspn_dit.errors import UserError
from gspn_dit.files import home_path
from gspn_dit.names import printable

EPILOG = """\
examples:
  python -m gspn_dit.app runs/demo
  python -m gspn_dit.app runs/gspn_b2 --vae stabilityai/sd-vae-ft-mse --host 0.0.0.0 --port 8000
"""


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = errors.ArgumentParser(
        prog="python -m gspn_dit.app",
        description="Sample from a trained run on a page in the browser, served from this machine.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "run", metavar="RUN_OR_ID", type=home_path, help="a folder that train.py made, or a hub id"
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to serve at; 0.0.0.0: all of this machine's (default: 127.0.0.1)",
    )
    parser.add_argument("--port", metavar="N", type=int, default=7860, help="its port (default: 7860)")
    parser.add_argument(
        "--vae", metavar="HUB_ID_OR_FOLDER", type=home_path, help="decoder (default: the run's own)"
    )
    parser.add_argument("--no-ema", action="store_true", help="the last weights, not their average")
    return parser.parse_args(argv)


def check_port(host: str, port: int) -> None:
    """Raise `UserError` for an address that cannot be served at, before anything is loaded."""
    if not 1 <= port <= 65535:
        raise UserError(f"--port {port}: expected 1 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
            probe.bind(address)
    except OSError as error:
        raise UserError(
            f"cannot serve at {host}:{port} ({error.strerror}): give another --port, or another --host"
        ) from None


def main(argv: Sequence[str] | None = None) -> None:
    """Read the arguments, then serve until stopped."""
    arguments = parse_arguments(argv)
    check_port(arguments.host, arguments.port)
    try:
        errors.require_packages("gradio")
    except UserError:
        raise UserError("the page needs the package gradio: .venv/bin/pip install 'gradio>=6'") from None
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # else it asks the network at the start
    # Speed: `--help` and a rejected argument answer without waiting for torch and Gradio.
    from gspn_dit.app.page import serve
    from gspn_dit.app.studio import Studio
    from gspn_dit.processes import connect

    studio = Studio(arguments.run, vae=arguments.vae, ema=not arguments.no_ema, device=connect().device)
    serve(studio, arguments.host, arguments.port)
    print(
        f"{printable(arguments.run)} is served at http://{arguments.host}:{arguments.port} (Ctrl-C ends it)",
        flush=True,
    )
    threading.Event().wait()  # not page.block_thread(), which may take an interrupt for an ordinary end


if __name__ == "__main__":
    errors.run(main)
