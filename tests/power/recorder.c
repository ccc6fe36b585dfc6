/* Records what a process does to the files below a folder, to be preloaded: LD_PRELOAD=recorder.so
 * RECORD_ROOT=folder RECORD_FILE=file python …
 *
 * Each record goes to the file in one write, so that those of several processes and threads stand in order:
 * a write before it is done, everything else once it has succeeded. tests/power/disk.py reads them.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

struct head {
    char kind, padding[7];
    uint64_t inode, offset;
    uint32_t path, other, data, zero;
};

static int below(const char *path) {
    static char root[PATH_MAX];
    if (!root[0] && (!getenv("RECORD_ROOT") || !realpath(getenv("RECORD_ROOT"), root))) return 0;
    size_t length = strlen(root);
    return !strncmp(path, root, length) && (path[length] == '/' || !path[length]);
}

static void record(char kind, uint64_t inode, uint64_t offset, const char *path, const char *other,
                   const void *data, size_t size) {
    static int file = -1;
    int error = errno;
    if (file < 0) file = REAL(open)(getenv("RECORD_FILE"), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    struct head head = {.kind = kind, .inode = inode, .offset = offset, .path = strlen(path),
                        .other = strlen(other), .data = size};
    struct iovec parts[] = {{&head, sizeof head}, {(void *)path, head.path}, {(void *)other, head.other},
                            {(void *)data, size}};
    if (REAL(writev)(file, parts, 4) < 0) abort();
    errno = error;
}

/* The file's path, links on the way resolved, but not the last name itself. */
static int resolve(int folder, const char *name, char *found) {
    char whole[2 * PATH_MAX], parent[PATH_MAX];
    int error = errno;
    if (name[0] == '/' || folder == AT_FDCWD) snprintf(whole, sizeof whole, "%s", name);
    else snprintf(whole, sizeof whole, "/proc/self/fd/%d/%s", folder, name);
    char *slash = strrchr(whole, '/');
    const char *last = slash ? slash + 1 : whole;
    char start[2 * PATH_MAX];
    snprintf(start, sizeof start, "%.*s", slash ? (int)(slash - whole) + 1 : 1, slash ? whole : ".");
    int known = realpath(start, parent) != NULL;
    known = known && snprintf(found, PATH_MAX, "%s/%s", strcmp(parent, "/") ? parent : "", last) < PATH_MAX;
    errno = error;
    return known && below(found);
}

static int described(int descriptor, char *path, struct stat *status) {
    char link[64];
    int error = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    int known = length > 0 && !fstat(descriptor, status) && (S_ISREG(status->st_mode) || S_ISDIR(status->st_mode));
    if (length > 0) path[length] = 0;
    errno = error;
    return known && below(path);
}

static uint64_t inode_of(const char *path) {
    struct stat status;
    int error = errno;
    uint64_t found = lstat(path, &status) ? 0 : status.st_ino;
    errno = error;
    return found;
}

static void opened(int descriptor, const char *path, int flags, int existed) {
    struct stat status;
    char same[PATH_MAX];
    if (descriptor < 0 || !described(descriptor, same, &status) || !S_ISREG(status.st_mode)) return;
    if (!existed) record('C', status.st_ino, 0, path, "", "", 0);
    else if (flags & O_TRUNC) record('T', status.st_ino, 0, path, "", "", 0);
}

#define OPEN_AT(name)                                                                                       \
    int name(int folder, const char *path, int flags, ...) {                                                \
        va_list more;                                                                                       \
        va_start(more, flags);                                                                              \
        mode_t mode = va_arg(more, mode_t);                                                                 \
        va_end(more);                                                                                       \
        char where[PATH_MAX];                                                                               \
        int ours = (flags & (O_CREAT | O_TRUNC)) && resolve(folder, path, where);                           \
        int existed = ours && inode_of(where);                                                              \
        int found = REAL(name)(folder, path, flags, mode);                                                  \
        if (ours) opened(found, where, flags, existed);                                                     \
        return found;                                                                                       \
    }
OPEN_AT(openat)
OPEN_AT(openat64)

#define OPEN(name)                                                                                          \
    int name(const char *path, int flags, ...) {                                                            \
        va_list more;                                                                                       \
        va_start(more, flags);                                                                              \
        mode_t mode = va_arg(more, mode_t);                                                                 \
        va_end(more);                                                                                       \
        char where[PATH_MAX];                                                                               \
        int ours = (flags & (O_CREAT | O_TRUNC)) && resolve(AT_FDCWD, path, where);                         \
        int existed = ours && inode_of(where);                                                              \
        int found = REAL(name)(path, flags, mode);                                                          \
        if (ours) opened(found, where, flags, existed);                                                     \
        return found;                                                                                       \
    }
OPEN(open)
OPEN(open64)

static void written(int descriptor, const void *data, size_t size, off_t offset) {
    struct stat status;
    char path[PATH_MAX];
    if (descriptor <= 2 || !described(descriptor, path, &status) || !S_ISREG(status.st_mode)) return;
    if (offset < 0) {
        int flags = fcntl(descriptor, F_GETFL);
        offset = flags & O_APPEND ? status.st_size : lseek(descriptor, 0, SEEK_CUR);
    }
    record('W', status.st_ino, offset, path, "", data, size);
}

ssize_t write(int descriptor, const void *data, size_t size) {
    written(descriptor, data, size, -1);
    return REAL(write)(descriptor, data, size);
}

#define PWRITE(name)                                                                                        \
    ssize_t name(int descriptor, const void *data, size_t size, off_t offset) {                             \
        written(descriptor, data, size, offset);                                                            \
        return REAL(name)(descriptor, data, size, offset);                                                  \
    }
PWRITE(pwrite)
PWRITE(pwrite64)

#define TRUNCATE(name)                                                                                      \
    int name(int descriptor, off_t size) {                                                                  \
        struct stat status;                                                                                 \
        char path[PATH_MAX];                                                                                \
        int result = REAL(name)(descriptor, size);                                                          \
        if (!result && described(descriptor, path, &status)) record('T', status.st_ino, size, path, "", "", 0); \
        return result;                                                                                      \
    }
TRUNCATE(ftruncate)
TRUNCATE(ftruncate64)

#define SYNC(name)                                                                                          \
    int name(int descriptor) {                                                                              \
        struct stat status;                                                                                 \
        char path[PATH_MAX];                                                                                \
        int result = REAL(name)(descriptor);                                                                \
        if (!result && described(descriptor, path, &status))                                                \
            record(S_ISDIR(status.st_mode) ? 'F' : 'S', status.st_ino, 0, path, "", "", 0);                 \
        return result;                                                                                      \
    }
SYNC(fsync)
SYNC(fdatasync)

static int renamed(int result, int from, const char *old, int to, const char *new, char kind) {
    char first[PATH_MAX], second[PATH_MAX];
    int old_ours = resolve(from, old, first), new_ours = resolve(to, new, second);
    if (!result && (old_ours || new_ours)) record(kind, inode_of(second), 0, first, second, "", 0);
    return result;
}

int rename(const char *old, const char *new) {
    return renamed(REAL(rename)(old, new), AT_FDCWD, old, AT_FDCWD, new, 'R');
}
int renameat(int from, const char *old, int to, const char *new) {
    return renamed(REAL(renameat)(from, old, to, new), from, old, to, new, 'R');
}
int link(const char *old, const char *new) {
    return renamed(REAL(link)(old, new), AT_FDCWD, old, AT_FDCWD, new, 'L');
}
int linkat(int from, const char *old, int to, const char *new, int flags) {
    return renamed(REAL(linkat)(from, old, to, new, flags), from, old, to, new, 'L');
}

static int changed(int result, int folder, const char *path, char kind) {
    char where[PATH_MAX];
    if (!result && resolve(folder, path, where)) record(kind, 0, 0, where, "", "", 0);
    return result;
}

int unlink(const char *path) { return changed(REAL(unlink)(path), AT_FDCWD, path, 'U'); }
int unlinkat(int folder, const char *path, int flags) {
    return changed(REAL(unlinkat)(folder, path, flags), folder, path, 'U');
}
int rmdir(const char *path) { return changed(REAL(rmdir)(path), AT_FDCWD, path, 'U'); }
int mkdir(const char *path, mode_t mode) { return changed(REAL(mkdir)(path, mode), AT_FDCWD, path, 'M'); }
int mkdirat(int folder, const char *path, mode_t mode) {
    return changed(REAL(mkdirat)(folder, path, mode), folder, path, 'M');
}
