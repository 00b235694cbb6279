/* Makes a program fail at the n-th call that it makes on an archive directory: preloaded into it (ld.so(8), LD_PRELOAD), and told
 * what to do through a file that it shares with the test.
 *
 * What's counted is every call of the C library by which CPython opens, writes, syncs, names, renames, removes or closes something
 * below the directory, over all threads, and every send on a TCP connection after the first new name. What comes between two of them changes
 * nothing on the disk, so that a kill in between leaves what a kill before the next one leaves. test_row01 compares the count with
 * strace's.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

enum action { COUNT, KILL, CUT_POWER, FAIL, HOLD };

/* The same as Control in crash.py. */
struct control {
    atomic_int armed;
    int32_t action;
    int32_t error;        /* for FAIL: the errno */
    int32_t short_writes; /* writes take no more than so many bytes; 0: all */
    atomic_long calls;    /* counted since it was armed */
    int64_t at;           /* acts in place of this one, counted from 1 */
    char only[32];        /* counts calls of this name only, or those that change something ("changing"); empty: all */
    char root[256];       /* the directory */
    char seen[32];        /* the call that it acted at */
    char names[8192];     /* the calls counted, a line each */
    atomic_int named;     /* how much of that is used */
    atomic_int changed;   /* a name has been given: what's sent from now on may be the reply */
};

static struct control *control;

__attribute__((constructor)) static void attach(void)
{
    const char *path = getenv("CRASH_CONTROL");
    int fd = path ? (int)open(path, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0)
        return;
    void *shared = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (shared != MAP_FAILED)
        control = shared;
}

#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

static int armed(void) { return control && atomic_load(&control->armed); }

static int below_root(const char *path);

/* A server's paths lead through a descriptor of its directory. */
static int ours_fd(int fd)
{
    char link[40], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = 0;
    return below_root(path);
}

static int below_root(const char *path)
{
    int fd;
    if (sscanf(path, "/proc/self/fd/%d", &fd) == 1)
        return ours_fd(fd);
    size_t length = strlen(control->root);
    return length && !strncmp(path, control->root, length) && (path[length] == '/' || !path[length]);
}

static int ours(int dirfd, const char *path)
{
    return path[0] == '/' || dirfd == AT_FDCWD ? below_root(path) : ours_fd(dirfd);
}

static const char *is_directory(int fd, const char *name, const char *name_for_directories)
{
    struct stat status;
    return !fstat(fd, &status) && S_ISDIR(status.st_mode) ? name_for_directories : name;
}

/* 0: go on. Else the errno that the call is to fail with. */
static int before(const char *name)
{
    int changes = strcmp(name, "open") && strncmp(name, "close", 5);
    if (!strcmp(control->only, "changing") ? !changes : control->only[0] && strcmp(control->only, name))
        return 0;
    long number = atomic_fetch_add(&control->calls, 1) + 1;
    int size = (int)strlen(name) + 1, place = atomic_fetch_add(&control->named, size);
    if (place + size < (int)sizeof control->names) {
        memcpy(control->names + place, name, size - 1);
        control->names[place + size - 1] = '\n';
    }
    if (!strcmp(name, "link") || !strcmp(name, "rename"))
        atomic_store(&control->changed, 1);
    if (control->action == COUNT || number != control->at)
        return 0;
    strncpy(control->seen, name, sizeof control->seen - 1);
    if (control->action == FAIL)
        return control->error;
    if (control->action == HOLD) { /* until it's disarmed */
        while (armed())
            usleep(1000);
        return 0;
    }
    if (control->action == CUT_POWER) {
        /* FS_IOC_SHUTDOWN with EXT4_GOING_FLAGS_NOLOGFLUSH: nothing that isn't on the disk by now gets there. */
        uint32_t flags = 2;
        int fd = open(control->root, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (fd < 0 || ioctl(fd, 0x8004587d, &flags))
            strcpy(control->seen, "no power cut");
    }
    atomic_store(&control->armed, 0);
    kill(getpid(), SIGKILL);
    for (;;)
        pause();
}

#define GUARD(condition, name)                                          \
    if (armed() && (condition)) {                                       \
        int failure = before(name);                                     \
        if (failure) {                                                  \
            errno = failure;                                            \
            return -1;                                                  \
        }                                                               \
    }

#define OPEN(function)                                                  \
    int function(const char *path, int flags, ...)                      \
    {                                                                   \
        REAL(function);                                                 \
        va_list rest;                                                   \
        va_start(rest, flags);                                          \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest);                                                   \
        GUARD(ours(AT_FDCWD, path), flags & O_CREAT ? "create" : "open") \
        return real(path, flags, mode);                                 \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(function)                                                \
    int function(int dirfd, const char *path, int flags, ...)           \
    {                                                                   \
        REAL(function);                                                 \
        va_list rest;                                                   \
        va_start(rest, flags);                                          \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest);                                                   \
        GUARD(ours(dirfd, path), flags & O_CREAT ? "create" : "open")   \
        return real(dirfd, path, flags, mode);                          \
    }
OPENAT(openat)
OPENAT(openat64)

/* Every other short write is preceded by an interruption: CPython goes on after it by itself (PEP 475). */
static int shorten(int fd, size_t *size)
{
    static atomic_int turn;
    if (!armed() || !control->short_writes || !ours_fd(fd))
        return 0;
    if (*size > (size_t)control->short_writes)
        *size = (size_t)control->short_writes;
    return atomic_fetch_add(&turn, 1) % 2;
}

#define INTERRUPTED                                                     \
    if (shorten(fd, &size)) {                                           \
        errno = EINTR;                                                  \
        return -1;                                                      \
    }

ssize_t write(int fd, const void *data, size_t size)
{
    REAL(write);
    GUARD(ours_fd(fd), "write")
    INTERRUPTED
    return real(fd, data, size);
}

#define PWRITE(function, type)                                          \
    ssize_t function(int fd, const void *data, size_t size, type offset) \
    {                                                                   \
        REAL(function);                                                 \
        GUARD(ours_fd(fd), "write")                                     \
        INTERRUPTED                                                     \
        return real(fd, data, size, offset);                            \
    }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

#define FD(function, name, declaration, ...)                            \
    int function declaration                                            \
    {                                                                   \
        REAL(function);                                                 \
        GUARD(ours_fd(fd), name)                                        \
        return real(__VA_ARGS__);                                       \
    }
FD(fsync, is_directory(fd, "fsync", "fsync directory"), (int fd), fd)
FD(fdatasync, "fsync", (int fd), fd)
FD(fchmod, "fchmod", (int fd, mode_t mode), fd, mode)
FD(ftruncate, "ftruncate", (int fd, off_t size), fd, size)
FD(ftruncate64, "ftruncate", (int fd, off64_t size), fd, size)

int close(int fd)
{
    REAL(close);
    if (armed() && ours_fd(fd)) {
        int failure = before(is_directory(fd, "close", "close directory"));
        if (failure) {
            real(fd); /* a close that fails has closed all the same: close(2) */
            errno = failure;
            return -1;
        }
    }
    return real(fd);
}

#define PATH(function, name, declaration, condition, ...)               \
    int function declaration                                            \
    {                                                                   \
        REAL(function);                                                 \
        GUARD(condition, name)                                          \
        return real(__VA_ARGS__);                                       \
    }
PATH(link, "link", (const char *from, const char *to), ours(AT_FDCWD, to), from, to)
PATH(linkat, "link", (int fromfd, const char *from, int tofd, const char *to, int flags), ours(tofd, to), fromfd, from, tofd, to, flags)
PATH(rename, "rename", (const char *from, const char *to), ours(AT_FDCWD, to), from, to)
PATH(renameat, "rename", (int fromfd, const char *from, int tofd, const char *to), ours(tofd, to), fromfd, from, tofd, to)
PATH(renameat2, "rename", (int fromfd, const char *from, int tofd, const char *to, unsigned flags), ours(tofd, to), fromfd, from, tofd, to, flags)
PATH(unlink, "unlink", (const char *path), ours(AT_FDCWD, path), path)
PATH(unlinkat, "unlink", (int dirfd, const char *path, int flags), ours(dirfd, path), dirfd, path, flags)
PATH(rmdir, "rmdir", (const char *path), ours(AT_FDCWD, path), path)
PATH(mkdir, "mkdir", (const char *path, mode_t mode), ours(AT_FDCWD, path), path, mode)
PATH(mkdirat, "mkdir", (int dirfd, const char *path, mode_t mode), ours(dirfd, path), dirfd, path, mode)

static int is_tcp(int fd)
{
    int domain;
    socklen_t size = sizeof domain;
    return !getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &size) && (domain == AF_INET || domain == AF_INET6);
}

/* A send never fails by command: only a kill can come before it. Those while data still comes in are flow control. */
static void before_send(int fd)
{
    if (armed() && atomic_load(&control->changed) && control->action != FAIL && is_tcp(fd))
        before("send");
}

ssize_t send(int fd, const void *data, size_t size, int flags)
{
    REAL(send);
    before_send(fd);
    return real(fd, data, size, flags);
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
    REAL(sendmsg);
    before_send(fd);
    return real(fd, message, flags);
}
