// What the host does to one process, as a file says it: a clock that steps, a disk whose syncs are slow, one with little room or none.
// Loaded before the C library. The file is mapped, so that it changes while the process runs.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <threads.h>
#include <time.h>
#include <unistd.h>

#define OWN __attribute__((visibility("default")))

struct told {
    int64_t clock_seconds;
    int64_t sync_micros;
    int64_t room;
};

// The room that a disk has; without a word all that it really has.
enum { ENOUGH, LITTLE, NONE };

static const volatile struct told nothing;
static const volatile struct told *told = &nothing;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("TOLLGATE_TEST_HOST");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0)
        return;
    void *map = mmap(NULL, sizeof(struct told), PROT_READ, MAP_SHARED, file, 0);
    if (map != MAP_FAILED)
        told = map;
    close(file);
}

#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

OWN int clock_gettime(clockid_t clock, struct timespec *now) {
    REAL(clock_gettime);
    int error = real(clock, now);
    if (!error && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += told->clock_seconds;
    return error;
}

OWN int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    REAL(gettimeofday);
    int error = real(now, zone);
    if (!error)
        now->tv_sec += told->clock_seconds;
    return error;
}

OWN time_t time(time_t *now) {
    REAL(time);
    time_t shown = real(NULL) + told->clock_seconds;
    if (now)
        *now = shown;
    return shown;
}

// Moments to wait for that were made of the clock above. Those of the monotonic clock are far below.
static struct timespec until(const struct timespec *moment) {
    struct timespec real = *moment;
    if (real.tv_sec > 1000000000)
        real.tv_sec -= told->clock_seconds;
    return real;
}

OWN int cnd_timedwait(cnd_t *restrict condition, mtx_t *restrict mutex, const struct timespec *restrict moment) {
    REAL(cnd_timedwait);
    struct timespec there = until(moment);
    return real(condition, mutex, &there);
}

OWN int pthread_cond_timedwait(pthread_cond_t *restrict condition, pthread_mutex_t *restrict mutex,
                               const struct timespec *restrict moment) {
    static __typeof__(&pthread_cond_timedwait) real;
    // The oldest version of it, which a plain look-up may give, is of another shape.
    if (!real)
        real = (__typeof__(real))dlvsym(RTLD_NEXT, "pthread_cond_timedwait", "GLIBC_2.3.2");
    if (!real)
        real = (__typeof__(real))dlsym(RTLD_NEXT, "pthread_cond_timedwait");
    struct timespec there = until(moment);
    return real(condition, mutex, &there);
}

static void slow(void) {
    int64_t micros = told->sync_micros;
    struct timespec pause = {micros / 1000000, micros % 1000000 * 1000};
    if (micros)
        nanosleep(&pause, NULL);
}

OWN int fsync(int file) {
    REAL(fsync);
    slow();
    return real(file);
}

OWN int fdatasync(int file) {
    REAL(fdatasync);
    slow();
    return real(file);
}

// So much is little.
static const fsblkcnt_t LITTLE_BYTES = 64 << 20;

OWN int statvfs(const char *restrict path, struct statvfs *restrict what) {
    REAL(statvfs);
    int error = real(path, what);
    if (!error && told->room != ENOUGH)
        what->f_bfree = what->f_bavail = told->room == LITTLE ? LITTLE_BYTES / what->f_frsize : 0;
    return error;
}

// Files have no room; sockets and pipes need none.
static int no_room(int file) {
    struct stat what;
    if (told->room != NONE || fstat(file, &what) || !S_ISREG(what.st_mode))
        return 0;
    errno = ENOSPC;
    return 1;
}

OWN ssize_t write(int file, const void *bytes, size_t count) {
    REAL(write);
    return no_room(file) ? -1 : real(file, bytes, count);
}

OWN ssize_t writev(int file, const struct iovec *parts, int count) {
    REAL(writev);
    return no_room(file) ? -1 : real(file, parts, count);
}

OWN ssize_t pwrite(int file, const void *bytes, size_t count, off_t at) {
    REAL(pwrite);
    return no_room(file) ? -1 : real(file, bytes, count, at);
}

OWN ssize_t pwrite64(int file, const void *bytes, size_t count, off64_t at) {
    REAL(pwrite64);
    return no_room(file) ? -1 : real(file, bytes, count, at);
}
