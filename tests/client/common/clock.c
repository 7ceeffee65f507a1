/*
 * For LD_PRELOAD: a server whose clocks a test can move. The file that PRESENCE_TEST_CLOCK names holds two numbers of
 * microseconds, for the wall clock and for CLOCK_BOOTTIME; all processes of the server have it mapped. The monotonic
 * clock, on which waiting runs, stays as it is.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t *offsets;

__attribute__((constructor)) static void map_offsets(void)
{
    const char *path = getenv("PRESENCE_TEST_CLOCK");
    int file = path ? open(path, O_RDONLY) : -1;
    if (file < 0)
        return;
    void *memory = mmap(NULL, 2 * sizeof(int64_t), PROT_READ, MAP_SHARED, file, 0);
    if (memory != MAP_FAILED)
        offsets = memory;
    close(file);
}

int clock_gettime(clockid_t clock, struct timespec *time)
{
    int result = (int) syscall(SYS_clock_gettime, clock, time);
    int which = clock == CLOCK_REALTIME ? 0 : clock == CLOCK_BOOTTIME ? 1 : -1;
    if (result == 0 && which >= 0 && offsets) {
        int64_t nanoseconds = time->tv_nsec + offsets[which] % 1000000 * 1000;
        time->tv_sec += offsets[which] / 1000000;
        if (nanoseconds < 0) {
            nanoseconds += 1000000000;
            time->tv_sec -= 1;
        }
        time->tv_sec += nanoseconds / 1000000000;
        time->tv_nsec = nanoseconds % 1000000000;
    }
    return result;
}

int gettimeofday(struct timeval *restrict time, void *restrict zone)
{
    struct timespec now;
    (void) zone;
    clock_gettime(CLOCK_REALTIME, &now);
    time->tv_sec = now.tv_sec;
    time->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *seconds)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (seconds)
        *seconds = now.tv_sec;
    return now.tv_sec;
}
