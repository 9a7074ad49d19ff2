// Runs programs, one after the other, until one fails, and says what they took:
//
//     clock FILE PROGRAM [ARGUMENT ...] [&& PROGRAM [ARGUMENT ...]] ...
//
// Into FILE go four numbers: microseconds that have passed, microseconds of CPU in user mode and in the kernel, and the
// most memory that one of them had, in KiB. Shells and their clocks would take milliseconds, as much as what is measured.
#define _GNU_SOURCE
#include <errno.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>

extern char **environ;

static long long now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000ll + time.tv_nsec / 1000;
}

static long long micros(struct timeval time) {
    return time.tv_sec * 1000000ll + time.tv_usec;
}

int main(int count, char **arguments) {
    if (count < 3) return 2;
    long long user = 0, system = 0;
    long memory = 0;
    int status = 0;
    long long started = now();
    for (char **program = arguments + 2; status == 0 && *program;) {
        char **end = program;
        while (*end && strcmp(*end, "&&")) end++;
        char **next = *end ? end + 1 : end;
        *end = NULL;
        pid_t child;
        int error = posix_spawnp(&child, *program, NULL, NULL, program, environ);
        if (error) {
            fprintf(stderr, "clock: %s: %s\n", *program, strerror(error));
            return 127;
        }
        struct rusage used;
        while (wait4(child, &status, 0, &used) < 0)
            if (errno != EINTR) return 2;
        user += micros(used.ru_utime);
        system += micros(used.ru_stime);
        if (used.ru_maxrss > memory) memory = used.ru_maxrss;
        program = next;
    }
    long long passed = now() - started;
    FILE *told = fopen(arguments[1], "w");
    if (!told || fprintf(told, "%lld %lld %lld %ld\n", passed, user, system, memory) < 0 || fclose(told)) return 2;
    return status ? 1 : 0;
}
