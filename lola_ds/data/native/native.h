/* What the module does in C: reads frames, and sums up their values. */
#ifndef LOLA_DS_NATIVE_H
#define LOLA_DS_NATIVE_H

#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>

/* frames.c and xxh3.c are compiled once for every LEVEL of vector instructions, which is appended to
 * the names of their functions; module.c chooses a level when it is loaded. */
#define JOIN_EXPANDED(name, level) name##_##level
#define JOIN(name, level) JOIN_EXPANDED(name, level)
#define AT_LEVEL(name) JOIN(name, LEVEL)

/* A row of the index's table of segments, of which there are five numbers. */
enum { SHARD = 3, OFFSET, PLACE };

/* Where the frames of a split lie, of `size` bytes each: `first[i]` is the number of the first frame
 * of segment i. */
struct split {
    int64_t segments, size;
    const int64_t *first, *places;
};

/* Different frames, in their order: frame i lies at `offsets[i]` of `shards[i]`, and becomes the
 * rows `rows[bounds[i]]` ... `rows[bounds[i + 1] - 1]`. */
struct reads {
    int64_t *frames, *shards, *offsets, *bounds, *rows;
};

/* Sorts what is `wanted`, as `frames[i]` in `rows[i]`; returns how many different frames there are,
 * -1 without memory for it. */
int64_t arrange(const struct split *split, const int64_t *frames, const int64_t *rows,
                int64_t wanted, const struct reads *reads);

/* An open file of `size` bytes, which lies at `address` in memory unless that is 0. The stamp is
 * not for here. */
struct file {
    int64_t descriptor, address, size, stamp;
};

/* `count` different frames of `size` bytes each, and where each goes: frame i is read from
 * `offsets[i]` of `files[shards[i]]` into the rows `rows[bounds[i]]` ... `rows[bounds[i + 1] - 1]`
 * of `out`. Its XXH3-64 must be `digests[i]` if `unsure[i]`. */
struct frames {
    int64_t count, size;
    const struct file *files;
    const int64_t *shards;
    const int64_t *offsets;
    const uint64_t *digests;
    const uint8_t *unsure;
    const int64_t *bounds;
    const int64_t *rows;
    char *out;
};

enum problem { SOUND, FAILED, ENDED, DIFFERS };

/* The first frame that could not be read: the system said `error` (FAILED), or the file ended
 * (ENDED), after `bytes` of the frame; or its digest is another (DIFFERS). */
struct outcome {
    enum problem problem;
    int64_t frame, bytes;
    int error;
};

typedef struct outcome frame_reader(const struct frames *frames);

/* The address of a whole file in memory, read-only; 0 if it cannot be mapped. */
int64_t map_file(int descriptor, int64_t size);
void unmap_file(int64_t address, int64_t size);

/* Takes its pages out of this process's memory, not out of the system's; they come when needed. */
void release_file(int64_t address, int64_t size);

/* Where this thread goes on if the mapped memory that it reads is no longer backed by a file. */
extern _Thread_local sigjmp_buf *on_fault __attribute__((tls_model("initial-exec")));

/* Has `on_fault` obeyed; to be called before it is set, as others may set handlers, too. */
void catch_faults(void);

/* Sums of deviations from a value, of their squares, and the extremes. */
struct moments {
    double first, second, low, high;
};

void add_moments(const float *x, int64_t size, double near, struct moments *sum);

#endif
