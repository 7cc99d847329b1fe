"""Servers of the stand-in for Kamal as folders of this machine: a "container" is a process with the container's environment."""
import os
import pathlib
import re
import subprocess

stub = pathlib.Path(os.environ["STUB"])


def inside(command, host):
    """The mounts of a container, by their paths; and production's bucket."""
    places = {"/rails/storage": host / "volume", "/tmp/": f"{host}/tmp/", "/etc/lifeboat": host / "etc", "s3://my-backups/myapp": f"file://{stub.parent}/store-production"}
    # In one pass: what was put in is not looked at again.
    command = re.sub("|".join(places), lambda found: str(places[found.group()]), command)
    (host / "tmp").mkdir(exist_ok=True)
    return command


def in_app(host, command, _reuse=True):
    env = {"PATH": os.environ["STUB_PATH"], "HOME": str(host)}
    for line in (host / "env").read_text().splitlines():
        key, _, value = line.partition("=")
        env[key] = value
    return {"args": ["sh", "-c", inside(command, host)], "cwd": host, "env": env}


def in_accessory(host, command, reuse=True):
    # Without --reuse the words follow the image's entrypoint.
    return in_app(host, command if reuse else "lifeboat " + command)


def boot_app(host):
    if (host / "boot").exists():
        subprocess.run(["sh", host / "boot"], cwd=host, check=True)


def stop_app(_host):
    """The test's."""


def boot_accessory(host):
    """The test's, if it does not say how."""
    if (host / "boot-accessory").exists():
        subprocess.run(["sh", host / "boot-accessory"], cwd=host, check=True)


stop_accessory = stop_app
