"""Forks a process for each documented program, with OpenMMLab imported: ``python server.py SOCKET``.

The programs in the folder of programs hand over their arguments, folder, variables and streams, so that a shell may
call them as it would the real ones, and each begins in no time. It serves one after another.
"""

import gc
import json
import os
import random
import socket
import sys
import traceback
from importlib import import_module

#: a program: it asks the server, and ends as the process did
CLIENT = """#!{python} -SE
import json, os, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
request = dict(argv=[{name!r}, *sys.argv[1:]], cwd=os.getcwd(), env=dict(os.environ))
data = json.dumps(request).encode()
socket.send_fds(server, [len(data).to_bytes(8, "big")], [0, 1, 2])
server.sendall(data)
sys.exit(int(server.recv(16) or b"70"))
"""
PRELOADED = ["mmseg.apis", "mmdet.apis", "timm", "apla_mm.options.command_line", "helpers.documentation.programs"]


def serve(address: str) -> None:
    """Serve until the process is killed."""
    for name in PRELOADED:
        import_module(name)
    gc.freeze()  # what is imported is no garbage: data sets collect it, over and over
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    while True:
        connection, _ = listener.accept()
        header, streams, _, _ = socket.recv_fds(connection, 8, 3)
        data = b""
        while len(data) < int.from_bytes(header, "big"):
            data += connection.recv(1 << 20)
        child = os.fork()
        if child == 0:
            _become(json.loads(data), streams)
        for stream in streams:
            os.close(stream)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        connection.sendall(str(code if code >= 0 else 128 - code).encode())
        connection.close()


def _become(request: dict, streams: list[int]) -> None:
    """Be the program, to its end."""
    code = 1
    try:
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        os.environ.clear()
        os.environ.update(request["env"])
        os.chdir(request["cwd"])
        random.seed()
        from helpers.documentation.programs import main

        main(request["argv"])
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException:  # as an interpreter does
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve(sys.argv[1])
