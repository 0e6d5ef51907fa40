/* Which frames a call reads, from where, and which rows each becomes. */
#include "native.h"

#include <stdlib.h>

struct wanted {
    int64_t frame, row;
};

static int compare(const void *a, const void *b)
{
    const struct wanted *x = a, *y = b;
    const int64_t less = x->frame != y->frame ? x->frame - y->frame : x->row - y->row;
    return (less > 0) - (less < 0);
}

/* The last of the segments that begin at `frame` or before; the first begins at 0. */
static int64_t find_segment(const struct split *split, int64_t frame)
{
    int64_t low = 0, high = split->segments;
    while (high - low > 1) {
        const int64_t middle = low + (high - low) / 2;
        if (split->first[middle] <= frame)
            low = middle;
        else
            high = middle;
    }
    return low;
}

int64_t arrange(const struct split *split, const int64_t *frames, const int64_t *rows,
                int64_t wanted, const struct reads *reads)
{
    int64_t count = 0;
    struct wanted *all = malloc((size_t)wanted * sizeof *all);
    if (!all)
        return -1;
    for (int64_t i = 0; i < wanted; i++)
        all[i] = (struct wanted){frames[i], rows[i]};
    qsort(all, (size_t)wanted, sizeof *all, compare);
    for (int64_t i = 0; i < wanted; i++) {
        reads->rows[i] = all[i].row;
        if (i && all[i].frame == all[i - 1].frame)
            continue;
        const int64_t segment = find_segment(split, all[i].frame);
        const int64_t *place = split->places + segment * PLACE;
        reads->frames[count] = all[i].frame;
        reads->shards[count] = place[SHARD];
        reads->offsets[count] = place[OFFSET] + (all[i].frame - split->first[segment]) * split->size;
        reads->bounds[count++] = i;
    }
    reads->bounds[count] = wanted;
    free(all);
    return count;
}
