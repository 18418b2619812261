/*
 * How steady the machine is under the servers: what its two cores need to pass a line of the cache to each other, what
 * memory needs to answer, and how fast the first core computes. A virtual machine's cores are moved, and shared with
 * others, several times a second; a look takes 20 ms.
 *
 *     cc -O2 -pthread -o probe benches/versus/probe.c && ./probe 30 0.25     (for 30 s, a look every 0.25 s)
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { LINES = 1 << 16, PASSES = 20000, PATIENCE = 100000, STEPS = 2000000 };

struct line {
    size_t next;
    char rest[64 - sizeof(size_t)];
};

static _Alignas(128) atomic_int ball;
static atomic_int stop;
static volatile size_t seen;

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

static void pause_for(double seconds)
{
    struct timespec time = {(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};
    nanosleep(&time, NULL);
}

static void bind_to(int core)
{
    cpu_set_t cores;
    CPU_ZERO(&cores);
    CPU_SET(core, &cores);
    sched_setaffinity(0, sizeof cores, &cores);
}

/* Sends back what the first core sends. */
static void *answer(void *none)
{
    bind_to(1);
    while (!atomic_load_explicit(&stop, memory_order_relaxed))
        if (atomic_load_explicit(&ball, memory_order_acquire) & 1)
            atomic_fetch_add(&ball, 1);
    return none;
}

/* ns for a line to the other core and back. */
static double exchange_ns(void)
{
    pthread_t other;
    atomic_store(&stop, 0);
    atomic_store(&ball, 0);
    if (pthread_create(&other, NULL, answer, NULL) != 0)
        return -1;
    pause_for(0.002);
    double begin = now();
    for (int pass = 0; pass < PASSES; pass++) {
        int sent = atomic_load(&ball) + 1, looks = 0;
        atomic_store(&ball, sent);
        while (atomic_load_explicit(&ball, memory_order_acquire) == sent && ++looks < PATIENCE)
            ;
    }
    double each = (now() - begin) / PASSES * 1e9;
    atomic_store(&stop, 1);
    pthread_join(other, NULL);
    return each;
}

/* ns of a load that waits for the one before it, in 4 MiB without order. */
static double load_ns(const struct line *lines)
{
    size_t at = 0;
    double begin = now();
    for (int load = 0; load < 2 * LINES; load++)
        at = lines[at].next;
    seen = at;
    return (now() - begin) / (2 * LINES) * 1e9;
}

/* ns of an addition to memory in the first cache. */
static double step_ns(void)
{
    volatile long sum = 0;
    double begin = now();
    for (long step = 0; step < STEPS; step++)
        sum += 1;
    return (now() - begin) / STEPS * 1e9;
}

int main(int count, char **words)
{
    double seconds = count > 1 ? atof(words[1]) : 10, gap = count > 2 ? atof(words[2]) : 0.25, begin = now();
    struct line *lines = malloc(LINES * sizeof *lines);
    size_t *order = malloc(LINES * sizeof *order);
    if (!lines || !order)
        return 1;
    bind_to(0);
    for (size_t i = 0; i < LINES; i++)
        order[i] = i;
    for (size_t i = LINES - 1; i > 0; i--) {
        size_t other = (size_t)rand() % (i + 1), kept = order[i];
        order[i] = order[other];
        order[other] = kept;
    }
    for (size_t i = 0; i < LINES; i++)
        lines[order[i]].next = order[(i + 1) % LINES];
    do {
        printf("%7.2f s  line there and back %5.0f ns  load in 4 MiB %5.1f ns  addition %.2f ns\n", now() - begin,
               exchange_ns(), load_ns(lines), step_ns());
        fflush(stdout);
        pause_for(gap);
    } while (now() - begin < seconds);
    return 0;
}
