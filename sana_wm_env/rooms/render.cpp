// The renderer of the rooms on a CPU: what `render_reference` of render.py computes, with the same constants,
// in one pass.
//
// Rays go in blocks: the samples of PIXELS neighbouring pixels of one row. A block's numbers lie on the
// stack, one array per quantity, and every loop over RAYS is free of branches, so that compilers turn it into
// vectors. Branches are taken per block: boxes that none of its rays can meet are left out, and a pattern is
// computed only for the materials that its rays have met.
//
// The compiler is told ALCOVES, SOLIDS and MATERIAL_FIELDS of scene.py.

// Minima and maxima become one instruction each; no ray has a NaN unless its pose has one. Above the headers:
// functions that are compiled otherwise would not be inlined.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("finite-math-only")
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

constexpr int SAMPLES = 2, PIXELS = 16, RAYS = SAMPLES * SAMPLES * PIXELS;  // ray = sample * PIXELS + pixel
constexpr int FLOOR = 0, CEILING = 1, WALLS = 2;                            // as in scene.py
constexpr int AIR = 1 + ALCOVES, MATERIALS = WALLS + AIR + SOLIDS;
constexpr float HAZE[3] = {0.62f, 0.64f, 0.68f}, AXIS_TONE[3] = {0.90f, 1.0f, 0.76f};  // as in render.py

struct Material {  // the fields of one row of Scenes.materials, in their order
    float first[3], second[3], frequency_u, frequency_v, offset_u, offset_v;
    float along_u, along_v, both, gradient, duty, row_shift;
};
static_assert(sizeof(Material) == MATERIAL_FIELDS * sizeof(float), "materials have changed");
static_assert(MATERIALS <= 32, "`shade` keeps the materials it has met as bits");

struct Box {
    float low[3], high[3];              // in the room's axes, from the camera
    float right[8], down[8], ahead[8];  // its corners in the camera's axes
    int32_t surface;                    // its material, except for the floor and the ceiling of air
};

struct Boxes {
    const Box* list[ALCOVES + SOLIDS];
    int alcoves = 0, count = 0;  // alcoves first
};

struct View {  // a frame: camera and room
    float rotation[3][3], origin[3], fx, fy, cx, cy;
    float lamp[3];  // from the camera
    const Material* materials;
    Box room, others[ALCOVES + SOLIDS];
    Boxes boxes;  // those of `others` that are there
};

struct Block {
    float direction[3][RAYS], inverse[3][RAYS];
    float stretch[RAYS];  // squared length of the ray that goes 1 ahead
    float depth[RAYS], along[RAYS], light[RAYS], u[RAYS], v[RAYS];
    int32_t axis[RAYS], surface[RAYS];  // of the face that is met: its normal, its material
    float colour[3][RAYS];
};

inline float smaller(float a, float b) { return a < b ? a : b; }
inline float larger(float a, float b) { return a > b ? a : b; }
inline float limit(float x, float low, float high) { return smaller(larger(x, low), high); }
inline float pick(int32_t axis, float x, float y, float z) { return axis == 0 ? x : axis == 1 ? y : z; }

// e^x for x <= 2 to 1e-5: a short series far inside its range, squared four times.
inline float exponential(float x) {
    const float s = larger(x, -20.0f) * (1.0f / 16);
    float power = 1 + s * (1 + s * (0.5f + s * (1.0f / 6 + s * (1.0f / 24))));
    power *= power;
    power *= power;
    power *= power;
    return power * power;
}

// sin(2 pi x) to 1e-6: folded onto the rising quarter turns around 0, then an odd polynomial.
inline float sine_of_turns(float x) {
    const float shifted = x - 0.25f;
    const float turn = std::fabs(shifted - std::floor(shifted) - 0.5f) - 0.25f, square = turn * turn;
    return turn * (6.283164f + square * (-41.33713f + square * (81.340386f + square * -70.989933f)));
}

struct Crossing { float enter, leave; int32_t enter_axis, leave_axis; };

// Depths at which a ray enters and leaves a box, and the normals of the faces it does so through; it misses
// the box if it leaves before it enters.
inline Crossing cross(const Box& box, const Block& block, int ray) {
    const float x = block.inverse[0][ray], y = block.inverse[1][ray], z = block.inverse[2][ray];
    const float x0 = box.low[0] * x, x1 = box.high[0] * x;
    const float y0 = box.low[1] * y, y1 = box.high[1] * y;
    const float z0 = box.low[2] * z, z1 = box.high[2] * z;
    const float near_x = smaller(x0, x1), near_y = smaller(y0, y1), near_z = smaller(z0, z1);
    const float far_x = larger(x0, x1), far_y = larger(y0, y1), far_z = larger(z0, z1);
    const float enter = larger(larger(near_x, near_y), near_z);
    const float leave = smaller(smaller(far_x, far_y), far_z);
    const int32_t enter_axis = enter == near_y ? 1 : enter == near_x ? 0 : 2;
    const int32_t leave_axis = leave == far_y ? 1 : leave == far_x ? 0 : 2;
    return {enter, leave, enter_axis, leave_axis};
}

// The material of a face of a box of air.
inline int32_t air_surface(int32_t axis, float down, int32_t walls) {
    return axis == 1 ? (down > 0 ? FLOOR : CEILING) : walls;
}

// Rays through the samples of the pixels from (left, row) on, each 1 m long along the optical axis.
void aim(const View& view, int left, int row, Block& __restrict block) {
    const float (&r)[3][3] = view.rotation;
    for (int sample = 0; sample < SAMPLES * SAMPLES; sample++) {
        const float y = (row + (sample / SAMPLES + 0.5f) / SAMPLES - view.cy) / view.fy;
        const float start = left + (sample % SAMPLES + 0.5f) / SAMPLES - view.cx, per_pixel = 1 / view.fx;
        for (int pixel = 0; pixel < PIXELS; pixel++) {
            const int ray = sample * PIXELS + pixel;
            const float x = (start + pixel) * per_pixel;
            block.stretch[ray] = x * x + y * y + 1;
            for (int axis = 0; axis < 3; axis++) {
                const float part = r[axis][0] * x + r[axis][1] * y + r[axis][2];
                const float safe = std::fabs(part) < 1e-6f ? 1e-6f : part;
                block.direction[axis][ray] = safe;
                block.inverse[axis][ray] = 1 / safe;
            }
        }
    }
}

// Where each ray ends: on the room's own faces, on those of an alcove that it goes on into, or on a solid.
void first_surface(const View& view, const Boxes& boxes, Block& __restrict block) {
    float room_leave[RAYS];
    const Box room = view.room;
    for (int ray = 0; ray < RAYS; ray++) {
        const Crossing at = cross(room, block, ray);
        room_leave[ray] = block.depth[ray] = at.leave;
        block.axis[ray] = at.leave_axis;
        block.surface[ray] = air_surface(at.leave_axis, block.direction[1][ray], WALLS);
    }
    for (int index = 0; index < boxes.alcoves; index++) {
        const Box box = *boxes.list[index];
        for (int ray = 0; ray < RAYS; ray++) {
            const Crossing at = cross(box, block, ray);
            const bool through = (at.enter <= room_leave[ray] + 1e-4f) & (at.leave > room_leave[ray] + 1e-4f);
            block.depth[ray] = through ? at.leave : block.depth[ray];
            block.axis[ray] = through ? at.leave_axis : block.axis[ray];
            const int32_t surface = air_surface(at.leave_axis, block.direction[1][ray], box.surface);
            block.surface[ray] = through ? surface : block.surface[ray];
        }
    }
    for (int index = boxes.alcoves; index < boxes.count; index++) {
        const Box box = *boxes.list[index];
        for (int ray = 0; ray < RAYS; ray++) {
            const Crossing at = cross(box, block, ray);
            const bool met = (at.leave > at.enter) & (at.enter > 0) & (at.enter < block.depth[ray]);
            block.depth[ray] = met ? at.enter : block.depth[ray];
            block.axis[ray] = met ? at.enter_axis : block.axis[ray];
            block.surface[ray] = met ? box.surface : block.surface[ray];
        }
    }
}

// What shading needs of the points that are met: place on the surface, slant of the ray, light of the lamp.
void illuminate(const View& view, Block& __restrict block) {
    const float lamp_x = view.lamp[0], lamp_y = view.lamp[1], lamp_z = view.lamp[2];
    const float origin_x = view.origin[0], origin_y = view.origin[1], origin_z = view.origin[2];
    for (int ray = 0; ray < RAYS; ray++) {
        const float depth = block.depth[ray];
        const int32_t axis = block.axis[ray];
        const float dx = block.direction[0][ray], dy = block.direction[1][ray], dz = block.direction[2][ray];
        const float x = depth * dx, y = depth * dy, z = depth * dz;
        block.u[ray] = axis == 0 ? origin_z + z : origin_x + x;
        block.v[ray] = axis == 1 ? origin_z + z : origin_y + y;
        block.along[ray] = std::fabs(pick(axis, dx, dy, dz));
        const float to_x = lamp_x - x, to_y = lamp_y - y, to_z = lamp_z - z;
        const float distance2 = to_x * to_x + to_y * to_y + to_z * to_z;
        const float facing = std::fabs(pick(axis, to_x, to_y, to_z));
        const float tone = pick(axis, AXIS_TONE[0], AXIS_TONE[1], AXIS_TONE[2]);
        const float weakening = std::sqrt(distance2) * (1 + distance2 * (1.0f / 20));
        block.light[ray] = tone * (0.62f + 0.55f * facing / weakening);
    }
}

// A periodic bar that is 1 for a share `duty` of each period of length 1, filtered over `footprint` periods.
inline float wave(float cells, float duty, float footprint) {
    const float ridge = std::fabs(cells - std::floor(cells) - 0.5f);  // 0.5 in the middle of the bar
    const float bar = limit((ridge - (0.5f - duty * 0.5f)) / larger(footprint, 1e-3f) + 0.5f, 0, 1);
    return bar + (duty - bar) * limit((footprint - 0.4f) * 2, 0, 1);
}

// How much of the second colour every ray shows, 0 to 1, were it to meet this material.
void pattern(const Material& material, float fx, const Block& block, float* __restrict share) {
    const Material m = material;
    for (int ray = 0; ray < RAYS; ray++) share[ray] = 0;
    if (m.along_u != 0 || m.along_v != 0 || m.both != 0)
        for (int ray = 0; ray < RAYS; ray++) {
            const float footprint = 0.6f * block.depth[ray] * block.stretch[ray] / (fx * block.along[ray]);
            const float v_cells = block.v[ray] * m.frequency_v + m.offset_v;
            const float shift = m.row_shift * std::floor(v_cells);
            const float u_cells = block.u[ray] * m.frequency_u + m.offset_u + shift;
            const float wave_u = wave(u_cells, m.duty, footprint * m.frequency_u);
            const float wave_v = wave(v_cells, m.duty, footprint * m.frequency_v);
            share[ray] = m.along_u * wave_u + m.along_v * wave_v + m.both * wave_u * wave_v;
        }
    if (m.gradient != 0)
        for (int ray = 0; ray < RAYS; ray++) {
            const float v_cells = block.v[ray] * m.frequency_v + m.offset_v;
            share[ray] += m.gradient * (0.5f + 0.5f * sine_of_turns(v_cells));
        }
}

// The colours of all rays: material by material, then light and haze.
void shade(const View& view, Block& __restrict block) {
    uint32_t met = 0;
    for (int ray = 0; ray < RAYS; ray++) met |= 1u << block.surface[ray];
    for (int surface = 0; surface < MATERIALS; surface++) {
        if (!(met >> surface & 1)) continue;
        float share[RAYS];
        const Material& material = view.materials[surface];
        pattern(material, view.fx, block, share);
        for (int c = 0; c < 3; c++) {
            const float first = material.first[c], change = material.second[c] - first;
            for (int ray = 0; ray < RAYS; ray++) {
                const float before = block.colour[c][ray], own = first + change * share[ray];
                block.colour[c][ray] = block.surface[ray] == surface ? own : before;
            }
        }
    }
    for (int ray = 0; ray < RAYS; ray++) {
        const float clear = exponential(block.depth[ray] * (-1.0f / 22)), light = block.light[ray];
        for (int c = 0; c < 3; c++)
            block.colour[c][ray] = (block.colour[c][ray] * light - HAZE[c]) * clear + HAZE[c];
    }
}

// Averages the samples of the first `count` pixels of a block into the picture; of their depths, the least.
void put(const Block& block, int count, uint8_t* rgb, float* depth_m) {
    float depth[PIXELS];
    uint8_t levels[PIXELS * 3];
    for (int c = 0; c < 3; c++) {
        int32_t level[PIXELS];
        for (int pixel = 0; pixel < PIXELS; pixel++) {
            float sum = 0;
            for (int sample = 0; sample < SAMPLES * SAMPLES; sample++)
                sum += block.colour[c][sample * PIXELS + pixel];
            level[pixel] = (int32_t)(limit(sum * (1.0f / (SAMPLES * SAMPLES)), 0, 1) * 255 + 0.5f);
        }
        for (int pixel = 0; pixel < PIXELS; pixel++) levels[pixel * 3 + c] = (uint8_t)level[pixel];
    }
    for (int pixel = 0; pixel < PIXELS; pixel++) {
        depth[pixel] = block.depth[pixel];
        for (int sample = 1; sample < SAMPLES * SAMPLES; sample++)
            depth[pixel] = smaller(depth[pixel], block.depth[sample * PIXELS + pixel]);
    }
    std::memcpy(rgb, levels, count * 3);
    std::memcpy(depth_m, depth, count * sizeof(float));
}

// Whether a box lies outside the wedge of rays between two slopes to the optical axis, with a millimetre to
// spare for rounding.
bool outside(const float* across, const float* ahead, float slope, float other) {
    const float from = std::min(slope, other), to = std::max(slope, other), spare = 1e-3f;
    int before = 0, beyond = 0;
    for (int corner = 0; corner < 8; corner++) {
        before += across[corner] < from * ahead[corner] - spare;
        beyond += across[corner] > to * ahead[corner] + spare;
    }
    return before == 8 || beyond == 8;
}

// The boxes that keep(box) is true of, in their order.
template <class Keep> Boxes choose(const Boxes& boxes, Keep keep) {
    Boxes kept;
    for (int index = 0; index < boxes.count; index++)
        if (keep(*boxes.list[index])) {
            kept.list[kept.count++] = boxes.list[index];
            kept.alcoves += index < boxes.alcoves;
        }
    return kept;
}

void render_frame(const View& view, int height, int width, uint8_t* rgb, float* depth_m) {
    Block block;
    std::memset(&block, 0, sizeof block);
    for (int row = 0; row < height; row++) {
        const float top = (row - view.cy) / view.fy, bottom = (row + 1 - view.cy) / view.fy;
        const auto on_row = [&](const Box& box) { return !outside(box.down, box.ahead, top, bottom); };
        const Boxes in_row = choose(view.boxes, on_row);
        for (int left = 0; left < width; left += PIXELS) {
            const float from = (left - view.cx) / view.fx, to = (left + PIXELS - view.cx) / view.fx;
            const auto in_block = [&](const Box& box) { return !outside(box.right, box.ahead, from, to); };
            aim(view, left, row, block);
            first_surface(view, choose(in_row, in_block), block);
            illuminate(view, block);
            shade(view, block);
            const int64_t first = (int64_t)row * width + left;
            put(block, std::min(PIXELS, width - left), rgb + 3 * first, depth_m + first);
        }
    }
}

// corners: the lower and the upper corner of the box in the room.
Box place(const View& view, const float* corners, int32_t surface) {
    Box box;
    for (int axis = 0; axis < 3; axis++) {
        box.low[axis] = corners[axis] - view.origin[axis];
        box.high[axis] = corners[3 + axis] - view.origin[axis];
    }
    for (int corner = 0; corner < 8; corner++) {
        float* parts[3] = {&box.right[corner], &box.down[corner], &box.ahead[corner]};
        for (int part = 0; part < 3; part++) {
            *parts[part] = 0;
            for (int axis = 0; axis < 3; axis++) {
                const float side = corner >> axis & 1 ? box.high[axis] : box.low[axis];
                *parts[part] += view.rotation[axis][part] * side;
            }
        }
    }
    box.surface = surface;
    return box;
}

// Whether any ray may meet the box: it has a volume, and some of it lies ahead of the camera.
bool matters(const Box& box) {
    bool solid = true, ahead = false;
    for (int axis = 0; axis < 3; axis++) solid &= box.high[axis] > box.low[axis];
    for (int corner = 0; corner < 8; corner++) ahead |= box.ahead[corner] > -1e-3f;
    return solid && ahead;
}

// pose: the upper three rows of camera-to-world; the rest are one room's parts of Scenes.
void set_up(View& view, const float* pose, const float* intrinsics, const float* air, const float* solids,
            const float* materials, const float* lamp) {
    for (int axis = 0; axis < 3; axis++) {
        for (int part = 0; part < 3; part++) view.rotation[axis][part] = pose[axis * 4 + part];
        view.origin[axis] = pose[axis * 4 + 3];
        view.lamp[axis] = lamp[axis] - view.origin[axis];
    }
    view.fx = intrinsics[0], view.fy = intrinsics[1], view.cx = intrinsics[2], view.cy = intrinsics[3];
    view.materials = reinterpret_cast<const Material*>(materials);
    view.room = place(view, air, WALLS);
    Boxes all;
    for (int index = 0; index < ALCOVES + SOLIDS; index++) {
        const bool alcove = index < ALCOVES;
        const float* corners = alcove ? air + 6 * (1 + index) : solids + 6 * (index - ALCOVES);
        view.others[index] = place(view, corners, WALLS + 1 + index);
        all.list[all.count++] = &view.others[index];
        all.alcoves += alcove;
    }
    view.boxes = choose(all, matters);
}

}  // namespace

// Renders frames first to last - 1 of rooms that have `frames` each; arrays as in render.py, contiguous,
// poses (B, F, 3, 4).
extern "C" __attribute__((visibility("default"))) void render_frames(
    int64_t first, int64_t last, int64_t frames, int64_t height, int64_t width, const float* poses,
    const float* intrinsics, const float* air, const float* solids, const float* materials, const float* lamp,
    uint8_t* rgb, float* depth_m) {
    for (int64_t frame = first; frame < last; frame++) {
        const int64_t room = frame / frames, pixels = frame * height * width;
        View view;
        set_up(view, poses + frame * 12, intrinsics + room * 4, air + room * AIR * 6,
               solids + room * SOLIDS * 6, materials + room * MATERIALS * MATERIAL_FIELDS, lamp + room * 3);
        render_frame(view, (int)height, (int)width, rgb + pixels * 3, depth_m + pixels);
    }
}
