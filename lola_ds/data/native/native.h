/* The interfaces of the C sources: planning reads, reading frames, mapping files, statistics. */
#ifndef LOLA_DS_NATIVE_H
#define LOLA_DS_NATIVE_H

#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>

/* frames.c and xxh3.c are compiled once for every LEVEL of vector instructions, which is appended
 * to the names of their functions; module.c chooses a level when it is loaded. */
#define JOIN_EXPANDED(name, level) name##_##level
#define JOIN(name, level) JOIN_EXPANDED(name, level)
#define AT_LEVEL(name) JOIN(name, LEVEL)

/* The columns used here of the index's table of segments, and how many it has. */
enum { SHARD = 3, OFFSET, COLUMNS };

/* Where the frames of a split lie, of `size` bytes each: `first[i]` is the number of the first
 * frame of segment i, `table` has a row of COLUMNS numbers for each segment. */
struct split {
    int64_t segments, size;
    const int64_t *first, *table;
};

/* Different frames, in ascending order: frame i lies at `offsets[i]` of `shards[i]`, and becomes
 * the rows `rows[bounds[i]]` ... `rows[bounds[i + 1] - 1]`. */
struct reads {
    int64_t *frames, *shards, *offsets, *bounds, *rows;
};

/* Plans to read frame `frames[i]` into row `rows[i]`, for `wanted` of them, each different frame
 * once; returns how many there are, or -1 if memory runs out. */
int64_t plan_reads(const struct split *split, const int64_t *frames, const int64_t *rows,
                   int64_t wanted, const struct reads *reads);

/* An open file of `size` bytes, mapped at `address` unless that is 0. `stamp`, which tells whether
 * the file has changed, is used in Python only. */
struct file {
    int64_t descriptor, address, size, stamp;
};

/* `count` different frames of `size` bytes each, and their destinations: frame i is read from
 * `offsets[i]` of `files[shards[i]]` into the rows `rows[bounds[i]]` ... `rows[bounds[i + 1] - 1]`
 * of `out`. Its XXH3-64 is compared with `digests[i]` if `unverified[i]`. */
struct frames {
    int64_t count, size;
    const struct file *files;
    const int64_t *shards;
    const int64_t *offsets;
    const uint64_t *digests;
    const uint8_t *unverified;
    const int64_t *bounds;
    const int64_t *rows;
    char *out;
};

enum problem { NONE, FAILED, ENDED, DIFFERS };

/* The first frame with a problem: reading failed with errno `error` (FAILED) or the file ended
 * (ENDED) after `bytes` of the frame, or its digest differs (DIFFERS). */
struct outcome {
    enum problem problem;
    int64_t frame, bytes;
    int error;
};

typedef struct outcome frame_reader(const struct frames *frames);

/* Maps a whole file, read-only; returns its address, 0 if it cannot be mapped. */
int64_t map_file(int descriptor, int64_t size);
void unmap_file(int64_t address, int64_t size);

/* Drops the mapping's pages from this process's resident memory; they stay in the page cache. */
void release_file(int64_t address, int64_t size);

/* Where this thread continues after a fault in mapped memory, if not NULL; see mapping.c for what
 * may run while it is set. */
extern _Thread_local sigjmp_buf *volatile on_fault __attribute__((tls_model("initial-exec")));

/* Installs the handler that obeys `on_fault`, unless it is installed: called before every use, as
 * other libraries may have replaced it. */
void catch_faults(void);

/* Sums of deviations from a value and of their squares, and the extremes. */
struct moments {
    double first, second, low, high;
};

/* Adds `size` values, as deviations from `near`. */
void add_moments(const float *x, int64_t size, double near, struct moments *sum);

#endif
