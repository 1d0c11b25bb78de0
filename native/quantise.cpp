#include "quantise.h"

#include "rounding.h"
#include "simd.h"

namespace synaptree::SYNAPTREE_ISA {
namespace {

int32_t samples_of(const Frame& frame, int32_t most) { return frame.samples < most ? int32_t(frame.samples) : most; }

const float* source(const Quantise& task, const Frame& frame, int32_t sample) {
    const float* rows = task.from.at < 0 ? frame.x : at<const float>(frame, task.from.at);
    return rows + sample * task.from.pitch;
}

float largest(const float* x, int32_t features) {
    Vec most{};
    int32_t i = 0;
    for (; i + LANES <= features; i += LANES) {
        const Vec v = load(x + i), size = v < 0.0f ? -v : v;
        most = size > most ? size : most;
    }
    float all = 0.0f;
    for (int32_t j = 0; j < LANES; j++) all = most[j] > all ? most[j] : all;
    for (; i < features; i++) {
        const float size = x[i] < 0.0f ? -x[i] : x[i];
        all = size > all ? size : all;
    }
    return all;
}

float scale_of_block(const Quantise& task, const Frame& frame) {
    float all = 0.0f;
    for (int32_t sample = 0; sample < samples_of(frame, task.samples); sample++) {
        const float most = largest(source(task, frame, sample), task.features);
        all = most > all ? most : all;
    }
    const float scale = all / 127.0f;
    return scale > 0.0f ? scale : 1.0f;
}

void quantise_row(const float* x, uint8_t* to, int32_t features, float inverse) {
    int32_t i = 0;
    for (; i + LANES <= features; i += LANES) store_rounded(to + i, load(x + i) * splat(inverse));
    if (i == features) return;
    float tail[LANES] = {};
    uint8_t bytes[LANES];
    std::memcpy(tail, x + i, sizeof(float) * size_t(features - i));
    store_rounded(bytes, load(tail) * splat(inverse));
    std::memcpy(to + i, bytes, size_t(features - i));
}

// With a scale that is known, a chunk is a sample; else there is one chunk.
void quantise(const void* given, const Frame& frame, int32_t first, int32_t last) {
    const Quantise& task = *static_cast<const Quantise*>(given);
    const int32_t samples = samples_of(frame, task.samples);
    float scale = task.scale;
    if (task.scale_at >= 0) {
        *at<float>(frame, task.scale_at) = scale = scale_of_block(task, frame);
        last = samples;
    }
    for (int32_t sample = first; sample < last && sample < samples; sample++) {
        uint8_t* to = at<uint8_t>(frame, task.to.at) + sample * task.to.pitch;
        quantise_row(source(task, frame, sample), to, task.features, 1.0f / scale);
    }
}

void leave_rows(const void* given, const Frame& frame, int32_t first, int32_t last) {
    const LeaveRows& task = *static_cast<const LeaveRows*>(given);
    const int32_t samples = samples_of(frame, task.samples);
    for (int32_t sample = first; sample < last && sample < samples; sample++)
        std::memcpy(frame.y + int64_t(sample) * task.features,
                    at<float>(frame, task.from.at) + sample * task.from.pitch, sizeof(float) * size_t(task.features));
}

}  // namespace

Kernel quantise_kernel() { return quantise; }
Kernel leave_rows_kernel() { return leave_rows; }

}  // namespace synaptree::SYNAPTREE_ISA
