/* A disk that can be cut off, for tests: preloaded, it records what a program does to files below $DISK_ROOT.
 *
 * $DISK_LOG receives one record an operation, in the order of the operations of all threads:
 *     char kind; u32 length of a; u32 length of b; i64 number; a; b
 * c created or opened for writing (a path)   t truncated (a path, number size)   w written (a path, b bytes, number offset)
 * r renamed (a from, b to)   u unlinked (a)   m folder made (a)   d folder removed (a)   s synced (a: file or folder)
 * ! said (b bytes written to file descriptor $DISK_SAY: what the program acknowledged, in the same order)
 *
 * $DISK_FAULT="sync N ERRNO" or "write N ERRNO": from the Nth such operation below the root on, it fails; "ONCE" as a
 * fourth word: that one only. $DISK_FAULT="kill N": the program dies, by SIGKILL, before its Nth operation.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char root[PATH_MAX];
static int log_fd = -1, say_fd = -1, fault_errno, once;
static long fault_at, seen_fault, seen_all;
static char fault[16];

#define REAL(name, type, ...) \
    static type (*real)(__VA_ARGS__); \
    if (!real) real = dlsym(RTLD_NEXT, name)

__attribute__((constructor)) static void begin(void) {
    const char *text = getenv("DISK_ROOT");
    if (!text) return;
    snprintf(root, sizeof root, "%s", text);
    if ((text = getenv("DISK_LOG"))) log_fd = open(text, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if ((text = getenv("DISK_SAY"))) say_fd = atoi(text);
    char last[16] = "";
    if ((text = getenv("DISK_FAULT"))) sscanf(text, "%15s %ld %d %15s", fault, &fault_at, &fault_errno, last);
    once = !strcmp(last, "ONCE");
}

static int inside(const char *whole) {
    size_t n = strlen(root);
    return !strncmp(whole, root, n) && (whole[n] == '/' || !whole[n]);
}

static int below(const char *path, char *whole) { /* whole: the absolute path */
    if (!root[0] || !path) return 0;
    if (path[0] == '/') snprintf(whole, PATH_MAX, "%s", path);
    else {
        char here[PATH_MAX / 2];
        if (!getcwd(here, sizeof here)) return 0;
        snprintf(whole, PATH_MAX, "%s/%s", here, path);
    }
    return inside(whole);
}

static int below_fd(int fd, char *whole) {
    if (!root[0]) return 0;
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, whole, PATH_MAX - 1);
    if (n <= 0) return 0;
    whole[n] = 0;
    return inside(whole);
}

static void note(char kind, const char *a, const void *b, size_t nb, int64_t number) {
    ssize_t (*out)(int, const void *, size_t) = dlsym(RTLD_NEXT, "write");
    if (log_fd < 0) return;
    uint32_t la = a ? strlen(a) : 0, lb = nb;
    char *record = malloc(17 + la + lb);
    record[0] = kind;
    memcpy(record + 1, &la, 4);
    memcpy(record + 5, &lb, 4);
    memcpy(record + 9, &number, 8);
    if (la) memcpy(record + 17, a, la);
    if (lb) memcpy(record + 17 + la, b, lb);
    if (out(log_fd, record, 17 + la + lb) != (ssize_t)(17 + la + lb)) abort();
    free(record);
}

/* With the lock held, before an operation: 1 when it has to fail with fault_errno. */
static int fails(const char *kind) {
    seen_all++;
    if (!strcmp(fault, "kill") && seen_all >= fault_at) raise(SIGKILL);
    if (strcmp(fault, kind)) return 0;
    seen_fault++;
    return once ? seen_fault == fault_at : seen_fault >= fault_at;
}

static int open_any(const char *name, int dir, const char *path, int flags, mode_t mode) {
    int (*real)(int, const char *, int, ...) = dlsym(RTLD_NEXT, "openat");
    char whole[PATH_MAX];
    (void)name;
    if (!(flags & (O_WRONLY | O_RDWR)) || !below(path, whole)) return real(dir, path, flags, mode);
    pthread_mutex_lock(&lock);
    int made = -1, new = access(whole, F_OK) != 0;
    if (new && fails("write")) errno = fault_errno;
    else if ((made = real(dir, path, flags, mode)) >= 0) {
        if (new) note('c', whole, 0, 0, 0);
        else if (flags & O_TRUNC) note('t', whole, 0, 0, 0);
    }
    pthread_mutex_unlock(&lock);
    return made;
}

#define MODE mode_t mode = 0; if (flags & (O_CREAT | O_TMPFILE)) { va_list l; va_start(l, flags); mode = va_arg(l, int); va_end(l); }
int open(const char *path, int flags, ...) { MODE return open_any("open", AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE return open_any("open64", AT_FDCWD, path, flags | O_LARGEFILE, mode); }
int openat(int dir, const char *path, int flags, ...) { MODE return open_any("openat", dir, path, flags, mode); }
int openat64(int dir, const char *path, int flags, ...) { MODE return open_any("openat64", dir, path, flags | O_LARGEFILE, mode); }

static ssize_t put(int fd, const void *data, size_t n, off_t at, int here) {
    ssize_t (*real_write)(int, const void *, size_t) = dlsym(RTLD_NEXT, "write");
    ssize_t (*real_pwrite)(int, const void *, size_t, off_t) = dlsym(RTLD_NEXT, "pwrite64");
    char whole[PATH_MAX];
    if (fd == say_fd && root[0]) {
        pthread_mutex_lock(&lock);
        note('!', "", data, n, 0);
        pthread_mutex_unlock(&lock);
    }
    if (!below_fd(fd, whole)) return here ? real_write(fd, data, n) : real_pwrite(fd, data, n, at);
    pthread_mutex_lock(&lock);
    ssize_t done = -1;
    if (fails("write")) errno = fault_errno;
    else {
        if (here) at = (fcntl(fd, F_GETFL) & O_APPEND) ? lseek(fd, 0, SEEK_END) : lseek(fd, 0, SEEK_CUR);
        done = here ? real_write(fd, data, n) : real_pwrite(fd, data, n, at);
        if (done > 0) note('w', whole, data, done, at);
    }
    pthread_mutex_unlock(&lock);
    return done;
}
ssize_t write(int fd, const void *data, size_t n) { return put(fd, data, n, 0, 1); }
ssize_t pwrite(int fd, const void *data, size_t n, off_t at) { return put(fd, data, n, at, 0); }
ssize_t pwrite64(int fd, const void *data, size_t n, off64_t at) { return put(fd, data, n, at, 0); }

static int sync_any(const char *name, int fd) {
    int (*real)(int) = dlsym(RTLD_NEXT, name);
    char whole[PATH_MAX];
    if (!below_fd(fd, whole)) return real(fd);
    pthread_mutex_lock(&lock);
    int done = -1;
    if (fails("sync")) errno = fault_errno;
    else { done = 0; note('s', whole, 0, 0, 0); } /* the log is the disk; the real one need not be waited for */
    pthread_mutex_unlock(&lock);
    return done;
}
int fsync(int fd) { return sync_any("fsync", fd); }
int fdatasync(int fd) { return sync_any("fdatasync", fd); }

static int truncate_any(int fd, off_t size) {
    REAL("ftruncate64", int, int, off_t);
    char whole[PATH_MAX];
    if (!below_fd(fd, whole)) return real(fd, size);
    pthread_mutex_lock(&lock);
    int done = -1;
    if (fails("write")) errno = fault_errno;
    else if (!(done = real(fd, size))) note('t', whole, 0, 0, size);
    pthread_mutex_unlock(&lock);
    return done;
}
int ftruncate(int fd, off_t size) { return truncate_any(fd, size); }
int ftruncate64(int fd, off64_t size) { return truncate_any(fd, size); }

int rename(const char *from, const char *to) {
    REAL("rename", int, const char *, const char *);
    char a[PATH_MAX], b[PATH_MAX];
    if (!below(from, a) || !below(to, b)) return real(from, to);
    pthread_mutex_lock(&lock);
    int done = -1;
    if (fails("write")) errno = fault_errno;
    else if (!(done = real(from, to))) note('r', a, b, strlen(b), 0);
    pthread_mutex_unlock(&lock);
    return done;
}

#define ON_PATH(name, kind, params, args, path) \
    int name params { \
        int (*real) params = dlsym(RTLD_NEXT, #name); \
        char whole[PATH_MAX]; \
        if (!below(path, whole)) return real args; \
        pthread_mutex_lock(&lock); \
        int done = -1; \
        if (fails(kind == 'm' ? "write" : "remove")) errno = fault_errno; \
        else if (!(done = real args)) note(kind, whole, 0, 0, 0); \
        pthread_mutex_unlock(&lock); \
        return done; \
    }
ON_PATH(unlink, 'u', (const char *path), (path), path)
ON_PATH(rmdir, 'd', (const char *path), (path), path)
ON_PATH(mkdir, 'm', (const char *path, mode_t mode), (path, mode), path)
