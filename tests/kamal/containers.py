"""Servers of the stand-in for Kamal as containers: an app and a sidecar on a shared volume, started as Kamal starts them.

$TAG names this run (images $TAG, $TAG-app; label test=$TAG). The folder of a host has `containers`, the beginning of its containers' and
volumes' names. All hosts of a project have one store, on the volume that $STUB/store names.
"""
import os
import pathlib
import re
import subprocess
import sys

tag = os.environ["TAG"]
stub = pathlib.Path(os.environ["STUB"])


def prefix(host):
    return (host / "containers").read_text().strip()


def docker(*args, **options):
    done = subprocess.run(["docker", *args], text=True, capture_output=True, **options)
    if done.returncode:
        sys.exit(f"docker {' '.join(args)}\n{done.stdout}{done.stderr}")
    return done.stdout.strip()


def exists(name):
    return subprocess.run(["docker", "container", "inspect", name], capture_output=True).returncode == 0


def mounts(host):
    return ["--label", f"test={tag}", "--env-file", str(host / "env"), "--volume", f"{prefix(host)}-storage:/rails/storage"]


def sidecar_mounts(host):
    store = (stub / "store").read_text().strip()
    return [*mounts(host), "--volume", f"{prefix(host)}-state:/var/lib/lifeboat", "--volume", f"{store}:/data"]


def inside(command):
    """Production's bucket."""
    return re.sub("s3://my-backups/myapp", "file:///data/store-production", command)


def in_app(host, command, reuse=True):
    if reuse:
        return {"args": ["docker", "exec", f"{prefix(host)}-app", "sh", "-c", inside(command)]}
    return {"args": ["docker", "run", "--rm", *mounts(host), f"{tag}-app", "sh", "-c", inside(command)]}


def in_accessory(host, command, reuse=True):
    if reuse:
        return {"args": ["docker", "exec", f"{prefix(host)}-lifeboat", "sh", "-c", inside(command)]}
    return {"args": ["docker", "run", "--rm", *sidecar_mounts(host), tag, *inside(command).split()]}


def boot(name, *options):
    if exists(name):
        docker("start", name)
    else:
        docker("run", "--detach", "--name", name, *options)


def boot_app(host):
    boot(f"{prefix(host)}-app", *mounts(host), f"{tag}-app", "python3", "-u", "/app.py")


def stop_app(host):
    docker("stop", "--time", "5", f"{prefix(host)}-app")


def boot_accessory(host):
    boot(f"{prefix(host)}-lifeboat", "--stop-timeout", "60", *sidecar_mounts(host), tag)


def stop_accessory(host):
    docker("stop", f"{prefix(host)}-lifeboat")
