#include "moves.h"

#include "simd.h"

namespace synaptree::SYNAPTREE_ISA {
namespace {

void enter(const void* task, const Frame& frame, int32_t first, int32_t last) {
    const Place& place = static_cast<const Move*>(task)->place;
    const int64_t features = int64_t(place.channels) * place.height * place.width;
    float* to = at<float>(frame, place.at);
    for (int32_t c = first; c < last; c++)
        for (int32_t row = 0; row < place.height; row++)
            for (int32_t column = 0; column < place.width; column++) {
                const float* from = frame.x + (int64_t(c) * place.height + row) * place.width + column;
                float* pixel = to + c * place.plane + row * place.pitch + int64_t(column) * place.lanes;
                for (int32_t lane = 0; lane < place.lanes; lane++)
                    pixel[lane] = lane < frame.samples ? from[lane * features] : 0.0f;
            }
}

void leave(const void* task, const Frame& frame, int32_t first, int32_t last) {
    const Place& place = static_cast<const Move*>(task)->place;
    const int64_t features = int64_t(place.channels) * place.height * place.width;
    const float* from = at<const float>(frame, place.at);
    for (int32_t c = first; c < last; c++)
        for (int32_t row = 0; row < place.height; row++)
            for (int32_t column = 0; column < place.width; column++) {
                float* to = frame.y + (int64_t(c) * place.height + row) * place.width + column;
                const float* pixel = from + c * place.plane + row * place.pitch + int64_t(column) * place.lanes;
                for (int32_t lane = 0; lane < frame.samples; lane++) to[lane * features] = pixel[lane];
            }
}

}  // namespace

Kernel enter_kernel() { return enter; }
Kernel leave_kernel() { return leave; }

}  // namespace synaptree::SYNAPTREE_ISA
