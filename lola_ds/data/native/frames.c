/* Reads frames straight into their places: what the loader does of each batch.
 *
 * A frame is read in pieces that fit a core's cache. A piece is hashed, and copied wherever else
 * the frame is wanted, right after it was read, so that memory is passed over once. What the system
 * has in memory is copied from the mapped file, past the caches, which is about twice as fast as having
 * the system copy it; the rest is read.
 *
 * This file is compiled once for every level of vector instructions; see AT_LEVEL.
 */
#define _GNU_SOURCE
#include "native.h"
#include "xxh3.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>
#ifdef __SSE2__
#include <immintrin.h>
#endif

enum { PIECE = 1 << 18, PAGES = 1 << 12, LINE = 64, AHEAD = PAGES };

static int descriptor_of(const struct frames *frames, int64_t frame)
{
    return (int)frames->files[frames->shards[frame]].descriptor;
}

/* Where the frame lies in memory, as a whole; NULL if it does not. */
static const char *find_mapped(const struct frames *frames, int64_t frame)
{
    const struct file *file = frames->files + frames->shards[frame];
    if (!file->address || file->size - frames->offsets[frame] < frames->size)
        return NULL;
    return (const char *)(file->address + frames->offsets[frame]);
}

/* Has the system fetch all frames from `first` on, side by side, before they are waited for. */
static void announce(const struct frames *frames, int64_t first)
{
#ifdef POSIX_FADV_WILLNEED
    for (int64_t i = first; i < frames->count; i++)
        posix_fadvise(descriptor_of(frames, i), frames->offsets[i], frames->size,
                      POSIX_FADV_WILLNEED);
#else
    (void)frames, (void)first;
#endif
}

/* Whether the byte is in memory already, and can be read without waiting for a disk. */
static int is_present(int descriptor, off_t offset)
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

/* Copies a line past the caches. */
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

/* Copies past the caches, where what is not read again soon would displace what is: half as much
 * goes over the memory bus as if the lines written to were fetched first. */
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

/* Hashes a piece of the mapped file if that is wanted, and copies it to all rows, some pages at a
 * time; not so if the file was truncated or the disk fails: reading it then says which. */
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
    for (size_t done = 0; done < size; done += PAGES) {
        const size_t some = size - done < PAGES ? size - done : PAGES;
        if (frames->unsure[frame])
            xxh3_update(&hash, piece + done, some);
        for (int64_t i = frames->bounds[frame]; i < frames->bounds[frame + 1]; i++)
            stream(frames->out + (size_t)frames->rows[i] * (size_t)frames->size + start + done,
                   piece + done, some);
    }
    on_fault = NULL;
#ifdef __SSE2__
    _mm_sfence();
#endif
    *state = hash;
    return 1;
}

/* Reads a piece to the first row, hashes it if that is wanted, and copies it to the others; returns
 * how many bytes there are, fewer only at the end of the file or where `*error` says why. */
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
    if (frames->unsure[frame])
        xxh3_update(state, piece, size);
    while (++row < end)
        memcpy(frames->out + (size_t)*row * (size_t)frames->size + start, piece, size);
    return done;
}

struct outcome AT_LEVEL(read_frames)(const struct frames *frames)
{
    const size_t size = (size_t)frames->size;
    int announced = 0;
    struct xxh3 state = XXH3_EMPTY;
    for (int64_t i = 0; i < frames->count; i++) {
        const char *mapped = find_mapped(frames, i);
        if (frames->unsure[i])
            state = XXH3_EMPTY;
        for (size_t start = 0; start < size; start += PIECE) {
            const size_t want = size - start < PIECE ? size - start : PIECE;
            const off_t last = (off_t)frames->offsets[i] + (off_t)(start + want) - 1;
            if (!announced && !is_present(descriptor_of(frames, i), last)) {
                announce(frames, i);
                announced = 1;
            }
            if (announced || !mapped ||
                !copy_mapped(frames, i, mapped + start, start, want, &state)) {
                int error = 0;
                const size_t done = read_piece(frames, i, start, want, &state, &error);
                if (done < want)
                    return (struct outcome){error ? FAILED : ENDED, i, (int64_t)(start + done),
                                            error};
            }
        }
        if (frames->unsure[i] && xxh3_digest(&state) != frames->digests[i])
            return (struct outcome){DIFFERS, i, frames->size, 0};
    }
    return (struct outcome){SOUND, frames->count, 0, 0};
}
