/* LD_PRELOAD shim: makes the next fsync or fdatasync of a WAL file kill the process (FSYNC_SHIM=kill) or fail with EIO
 * (FSYNC_SHIM=eio). A commit that ends so leaves valid frames in the WAL that never committed. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int is_wal(int fd)
{
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 4)
        return 0;
    path[n] = 0;
    return strcmp(path + n - 4, "-wal") == 0;
}

static int fails(int fd)
{
    const char *mode = getenv("FSYNC_SHIM");
    if (!mode || !is_wal(fd))
        return 0;
    if (strcmp(mode, "kill") == 0)
        raise(SIGKILL);
    errno = EIO;
    return 1;
}

int fsync(int fd)
{
    int (*real)(int) = dlsym(RTLD_NEXT, "fsync");
    return fails(fd) ? -1 : real(fd);
}

int fdatasync(int fd)
{
    int (*real)(int) = dlsym(RTLD_NEXT, "fdatasync");
    return fails(fd) ? -1 : real(fd);
}
