/* Reads frames into the rows of a batch.
 *
 * A frame is read in pieces that fit a core's cache. A piece is hashed, and copied to further rows,
 * right after it was read, so that memory is traversed once. What the page cache holds is copied
 * from the mapped file with non-temporal stores, about twice as fast as by pread; the rest is read
 * by pread.
 *
 * This file is compiled once for every level of vector instructions; see AT_LEVEL.
 */
#define _GNU_SOURCE
#include "native.h"
#include "xxh3.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>
#ifdef __SSE2__
#include <immintrin.h>
#endif

enum { PIECE = 1 << 18, PAGE = 1 << 12, LINE = 64, AHEAD = PAGE };

static int descriptor_of(const struct frames *frames, int64_t frame)
{
    return (int)frames->files[frames->shards[frame]].descriptor;
}

/* The address of the mapped frame; NULL if the file does not hold all of it or is not mapped. */
static const char *find_mapped(const struct frames *frames, int64_t frame)
{
    const struct file *file = frames->files + frames->shards[frame];
    if (!file->address || file->size - frames->offsets[frame] < frames->size)
        return NULL;
    return (const char *)(file->address + frames->offsets[frame]);
}

/* Has the system fetch all frames from `first` on at once, before the first is waited for. */
static void prefetch(const struct frames *frames, int64_t first)
{
#ifdef POSIX_FADV_WILLNEED
    for (int64_t i = first; i < frames->count; i++)
        posix_fadvise(descriptor_of(frames, i), frames->offsets[i], frames->size,
                      POSIX_FADV_WILLNEED);
#else
    (void)frames, (void)first;
#endif
}

/* Whether the page cache holds the byte, so that reading it waits for no disk. */
static int is_cached(int descriptor, off_t offset)
{
#ifdef RWF_NOWAIT
    char byte;
    struct iovec target = {&byte, 1};
    return preadv2(descriptor, &target, 1, offset, RWF_NOWAIT) == 1;
#else
    (void)descriptor, (void)offset;
    return 0;
#endif
}

/* Copies a cache line with non-temporal stores. */
static inline void stream_line(char *to, const char *from)
{
#if defined __AVX512F__
    _mm512_stream_si512((void *)to, _mm512_loadu_si512(from));
#elif defined __AVX2__
    for (int i = 0; i < LINE; i += 32)
        _mm256_stream_si256((void *)(to + i), _mm256_loadu_si256((const void *)(from + i)));
#elif defined __SSE2__
    for (int i = 0; i < LINE; i += 16)
        _mm_stream_si128((void *)(to + i), _mm_loadu_si128((const void *)(from + i)));
#else
    memcpy(to, from, LINE);
#endif
}

/* Copies with non-temporal stores: the lines written to are neither fetched first, which halves the
 * traffic, nor do they displace what the caches hold. */
static void stream(char *to, const char *from, size_t size)
{
    const size_t rest = -(uintptr_t)to % LINE, before = rest < size ? rest : size;
    memcpy(to, from, before);
    to += before, from += before, size -= before;
    for (; size >= LINE; to += LINE, from += LINE, size -= LINE) {
        __builtin_prefetch(from + AHEAD, 0, 0);
        stream_line(to, from);
    }
    memcpy(to, from, size);
}

/* Hashes a piece of the mapped file if its frame is unverified, and copies it to all rows, a page
 * at a time. Returns 0, with `state` as it was, if that faults: pread then tells what is wrong. */
static int copy_mapped(const struct frames *frames, int64_t frame, const char *piece,
                       size_t start, size_t size, struct xxh3 *state)
{
    struct xxh3 hash = *state;
    sigjmp_buf fault;
    if (sigsetjmp(fault, 0)) {
        on_fault = NULL;
        return 0;
    }
    on_fault = &fault;
    atomic_signal_fence(memory_order_seq_cst);
    for (size_t done = 0; done < size; done += PAGE) {
        const size_t some = size - done < PAGE ? size - done : PAGE;
        if (frames->unverified[frame])
            xxh3_update(&hash, piece + done, some);
        for (int64_t i = frames->bounds[frame]; i < frames->bounds[frame + 1]; i++)
            stream(frames->out + (size_t)frames->rows[i] * (size_t)frames->size + start + done,
                   piece + done, some);
    }
    atomic_signal_fence(memory_order_seq_cst);
    on_fault = NULL;
#ifdef __SSE2__
    _mm_sfence();
#endif
    *state = hash;
    return 1;
}

/* Reads a piece to the first row, hashes it if its frame is unverified, and copies it to the other
 * rows; returns how many bytes were read, fewer at the end of the file or if `*error` is set. */
static size_t read_piece(const struct frames *frames, int64_t frame, size_t start, size_t size,
                         struct xxh3 *state, int *error)
{
    const int64_t *row = frames->rows + frames->bounds[frame];
    const int64_t *end = frames->rows + frames->bounds[frame + 1];
    char *piece = frames->out + (size_t)*row * (size_t)frames->size + start;
    size_t done = 0;
    while (done < size) {
        ssize_t count = pread(descriptor_of(frames, frame), piece + done, size - done,
                              frames->offsets[frame] + (off_t)(start + done));
        if (count < 0 && errno == EINTR)
            continue;
        if (count < 0)
            *error = errno;
        if (count <= 0)
            return done;
        done += (size_t)count;
    }
    if (frames->unverified[frame])
        xxh3_update(state, piece, size);
    while (++row < end)
        memcpy(frames->out + (size_t)*row * (size_t)frames->size + start, piece, size);
    return done;
}

struct outcome AT_LEVEL(read_frames)(const struct frames *frames)
{
    const size_t size = (size_t)frames->size;
    int prefetched = 0;
    struct xxh3 state = XXH3_EMPTY;
    for (int64_t i = 0; i < frames->count; i++) {
        const char *mapped = find_mapped(frames, i);
        if (frames->unverified[i])
            state = XXH3_EMPTY;
        for (size_t start = 0; start < size; start += PIECE) {
            const size_t want = size - start < PIECE ? size - start : PIECE;
            const off_t last = (off_t)frames->offsets[i] + (off_t)(start + want) - 1;
            if (!prefetched && !is_cached(descriptor_of(frames, i), last)) {
                prefetch(frames, i);
                prefetched = 1;
            }
            if (prefetched || !mapped ||
                !copy_mapped(frames, i, mapped + start, start, want, &state)) {
                int error = 0;
                const size_t done = read_piece(frames, i, start, want, &state, &error);
                if (done < want)
                    return (struct outcome){error ? FAILED : ENDED, i, (int64_t)(start + done),
                                            error};
            }
        }
        if (frames->unverified[i] && xxh3_digest(&state) != frames->digests[i])
            return (struct outcome){DIFFERS, i, frames->size, 0};
    }
    return (struct outcome){NONE, frames->count, 0, 0};
}
