/* What the machine can do at best: one thread, io_uring, twelve registered buffers of 1 MiB, direct I/O both ways, the
 * target's space reserved first, data durable at the end. Only for measuring beside: it trusts its arguments.
 *
 *   floor copy SOURCE TARGET      raw to raw
 *   floor qcow2 SOURCE TARGET     raw to qcow2, clusters of 64 KiB in order, tables written once at the end
 *   floor compare ONE OTHER       both are read, and must be the same
 */
#define _GNU_SOURCE
#include <endian.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { SLOT = 1 << 20, SLOTS = 12, CLUSTER = 1 << 16 };

static void fail(const char *what) { perror(what); exit(1); }

static int ring;
static struct io_uring_params params;
static unsigned *sq_tail, *sq_mask, *sq_array, *cq_head, *cq_tail, *cq_mask;
static struct io_uring_sqe *sqes;
static struct io_uring_cqe *cqes;
static char *memory;
static unsigned queued, under_way;

static void set_up(void)
{
    ring = syscall(SYS_io_uring_setup, 64, &params);
    if (ring < 0) fail("io_uring_setup");
    char *sq = mmap(0, params.sq_off.array + params.sq_entries * sizeof(unsigned), PROT_READ | PROT_WRITE,
                    MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_SQ_RING);
    char *cq = mmap(0, params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe), PROT_READ | PROT_WRITE,
                    MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_CQ_RING);
    sqes = mmap(0, params.sq_entries * sizeof(*sqes), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring,
                IORING_OFF_SQES);
    if (sq == MAP_FAILED || cq == MAP_FAILED || sqes == MAP_FAILED) fail("mmap");
    sq_tail = (void *)(sq + params.sq_off.tail), sq_mask = (void *)(sq + params.sq_off.ring_mask);
    sq_array = (void *)(sq + params.sq_off.array), cq_head = (void *)(cq + params.cq_off.head);
    cq_tail = (void *)(cq + params.cq_off.tail), cq_mask = (void *)(cq + params.cq_off.ring_mask);
    cqes = (void *)(cq + params.cq_off.cqes);
    /* Of huge pages, so that a request is few pieces for the device. */
    memory = aligned_alloc(2 << 20, (size_t)SLOT * SLOTS);
    if (memory) madvise(memory, (size_t)SLOT * SLOTS, MADV_HUGEPAGE);
    struct iovec buffer = { memory, (size_t)SLOT * SLOTS };
    if (!memory || syscall(SYS_io_uring_register, ring, IORING_REGISTER_BUFFERS, &buffer, 1)) fail("register");
}

static void start(int write, int file, uint64_t offset, unsigned slot, unsigned length)
{
    unsigned tail = *sq_tail, index = tail & *sq_mask;
    sqes[index] = (struct io_uring_sqe){ .opcode = write ? IORING_OP_WRITE_FIXED : IORING_OP_READ_FIXED, .fd = file,
        .off = offset, .addr = (uint64_t)(memory + (size_t)slot * SLOT), .len = length,
        .user_data = (uint64_t)length << 32 | slot << 1 | write };
    sq_array[index] = index;
    __atomic_store_n(sq_tail, tail + 1, __ATOMIC_RELEASE);
    queued++, under_way++;
}

/* The slot of a request that ended, twice, plus one if it was a write. */
static unsigned ended(void)
{
    while (*cq_head == __atomic_load_n(cq_tail, __ATOMIC_ACQUIRE) || queued) {
        long taken = syscall(SYS_io_uring_enter, ring, queued, 1, IORING_ENTER_GETEVENTS, 0, 0);
        if (taken < 0) fail("io_uring_enter");
        queued -= taken;
    }
    struct io_uring_cqe done = cqes[*cq_head & *cq_mask];
    __atomic_store_n(cq_head, *cq_head + 1, __ATOMIC_RELEASE);
    if (done.res != (int)(done.user_data >> 32)) { fprintf(stderr, "a request failed: %d\n", done.res); exit(1); }
    under_way--;
    return done.user_data & 0xffffffff;
}

static int source, other;
static uint64_t size, at, data_end;

/* The next piece of data of the source. */
static unsigned next(uint64_t *offset)
{
    if (at >= data_end) {
        off_t data = lseek(source, at, SEEK_DATA);
        if (data < 0 || (uint64_t)data >= size) return 0;
        at = data, data_end = lseek(source, at, SEEK_HOLE);
    }
    *offset = at;
    unsigned length = SLOT - at % SLOT;
    if (length > data_end - at) length = data_end - at;
    at += length;
    return length;
}

static int is_zero(const char *bytes, size_t length)
{
    return bytes[0] == 0 && memcmp(bytes, bytes + 1, length - 1) == 0;
}

static void compare(void)
{
    uint64_t offset;
    unsigned length, pending[SLOTS] = { 0 }, lengths[SLOTS], free_pair[SLOTS / 2], free_count = SLOTS / 2;
    for (unsigned pair = 0; pair < SLOTS / 2; pair++) free_pair[pair] = pair;
    for (;;) {
        while (free_count && (length = next(&offset))) {
            unsigned pair = free_pair[--free_count];
            lengths[pair] = length, pending[pair] = 2;
            start(0, source, offset, 2 * pair, length), start(0, other, offset, 2 * pair + 1, length);
        }
        if (!under_way) break;
        unsigned pair = ended() >> 2;
        if (--pending[pair]) continue;
        char *ours = memory + (size_t)2 * pair * SLOT;
        if (memcmp(ours, ours + SLOT, lengths[pair])) { puts("different"); exit(1); }
        free_pair[free_count++] = pair;
    }
}

/* Reads all data, and writes what is not zero to where `place` says. What is zero is given to `empty`. */
static void move(uint64_t (*place)(uint64_t offset, unsigned length), void (*empty)(uint64_t offset, unsigned length))
{
    uint64_t offset, offsets[SLOTS];
    unsigned length, lengths[SLOTS], free_slot[SLOTS], free_count = SLOTS;
    for (unsigned slot = 0; slot < SLOTS; slot++) free_slot[slot] = slot;
    for (;;) {
        while (free_count && (length = next(&offset))) {
            unsigned slot = free_slot[--free_count];
            offsets[slot] = offset, lengths[slot] = length;
            start(0, source, offset, slot, length);
        }
        if (!under_way) break;
        unsigned done = ended(), slot = done >> 1;
        if (!(done & 1) && !is_zero(memory + (size_t)slot * SLOT, lengths[slot])) {
            start(1, other, place(offsets[slot], lengths[slot]), slot, lengths[slot]);
            continue;
        }
        if (!(done & 1)) empty(offsets[slot], lengths[slot]);
        free_slot[free_count++] = slot;
    }
}

static uint64_t same_place(uint64_t offset, unsigned length) { (void)length; return offset; }

static void punch(uint64_t offset, unsigned length)
{
    if (fallocate(other, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length)) fail("fallocate");
}

static void copy(void)
{
    if (ftruncate(other, size)) fail("ftruncate");
    for (off_t data = 0, hole; (data = lseek(source, data, SEEK_DATA)) >= 0; data = hole) {
        hole = lseek(source, data, SEEK_HOLE);
        if (fallocate(other, 0, data, hole - data)) fail("fallocate");
    }
    move(same_place, punch);
    if (fdatasync(other)) fail("fdatasync");
}

static void put(uint64_t offset, void *bytes, size_t length)
{
    if (pwrite(other, bytes, length, offset) != (ssize_t)length) fail("pwrite");
}

static uint64_t *l2, used = 1;

static uint64_t next_clusters(uint64_t offset, unsigned length)
{
    uint64_t place = used * CLUSTER;
    for (unsigned part = 0; part < (length + CLUSTER - 1) / CLUSTER; part++)
        l2[offset / CLUSTER + part] = htobe64(used++ * CLUSTER | 1ULL << 63);
    return place;
}

static void leave(uint64_t offset, unsigned length) { (void)offset, (void)length; }

static void qcow2(void)
{
    uint64_t clusters = (size + CLUSTER - 1) / CLUSTER, tables = (clusters + 8191) / 8192, taken = 0;
    l2 = aligned_alloc(4096, tables * CLUSTER);
    memset(l2, 0, tables * CLUSTER);
    for (off_t data = 0, hole; (data = lseek(source, data, SEEK_DATA)) >= 0; data = hole)
        hole = lseek(source, data, SEEK_HOLE), taken += hole - data + CLUSTER;
    if (fallocate(other, 0, 0, taken + (64 << 20))) fail("fallocate");
    move(next_clusters, leave);
    uint64_t l2_at = used, l1_at = used + tables, table_at = l1_at + 1, blocks = (table_at + 64) / 32768 + 1;
    uint64_t end = table_at + 1 + blocks;
    uint64_t *l1 = aligned_alloc(4096, CLUSTER), *table = aligned_alloc(4096, CLUSTER);
    uint16_t *counts = aligned_alloc(4096, blocks * CLUSTER);
    unsigned char *header = aligned_alloc(4096, CLUSTER);
    memset(l1, 0, CLUSTER), memset(table, 0, CLUSTER), memset(header, 0, CLUSTER);
    for (uint64_t index = 0; index < tables; index++) l1[index] = htobe64((l2_at + index) * CLUSTER | 1ULL << 63);
    for (uint64_t index = 0; index < blocks; index++) table[index] = htobe64((table_at + 1 + index) * CLUSTER);
    for (uint64_t index = 0; index < blocks * 32768; index++) counts[index] = htobe16(index < end);
    uint32_t words[] = { 0x514649fb, 3, 0, 0, 0, 16, size >> 32, size, 0, tables, l1_at * CLUSTER >> 32,
        l1_at * CLUSTER, table_at * CLUSTER >> 32, table_at * CLUSTER, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 104 };
    for (unsigned index = 0; index < sizeof(words) / 4; index++) ((uint32_t *)header)[index] = htobe32(words[index]);
    put(l2_at * CLUSTER, l2, tables * CLUSTER), put(l1_at * CLUSTER, l1, CLUSTER);
    put(table_at * CLUSTER, table, CLUSTER), put((table_at + 1) * CLUSTER, counts, blocks * CLUSTER);
    put(0, header, CLUSTER);
    if (ftruncate(other, end * CLUSTER) || fdatasync(other)) fail("the end");
}

int main(int count, char **arguments)
{
    if (count != 4) return 2;
    int compares = !strcmp(arguments[1], "compare");
    source = open(arguments[2], O_RDONLY | O_DIRECT);
    other = compares ? open(arguments[3], O_RDONLY | O_DIRECT)
                     : open(arguments[3], O_RDWR | O_CREAT | O_TRUNC | O_DIRECT, 0600);
    struct stat about;
    if (source < 0 || other < 0 || fstat(source, &about)) fail("open");
    size = about.st_size;
    set_up();
    if (compares) compare();
    else if (!strcmp(arguments[1], "qcow2")) qcow2();
    else copy();
    return 0;
}
