// Philox4x32-10, the counter-based generator of Salmon et al., "Parallel random numbers: as easy as
// 1, 2, 3" (SC'11): the same (key, counter) gives the same four words on every device.
//
// Key = seed; counter = (position lo, position hi, stream lo, stream hi). A stream names a purpose
// (parameter index, request sample), a position an element; never a thread or a batch slot.
#pragma once

#include <array>
#include <cstdint>

namespace tandem {

struct Philox {
  using Words = std::array<uint32_t, 4>;

  static constexpr Words Block(uint64_t seed, uint64_t stream, uint64_t position) {
    uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
    Words c = {static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32),
               static_cast<uint32_t>(stream), static_cast<uint32_t>(stream >> 32)};
    for (int round = 0; round < 10; ++round) {
      const uint64_t p0 = uint64_t{0xD2511F53} * c[0];
      const uint64_t p1 = uint64_t{0xCD9E8D57} * c[2];
      c = {static_cast<uint32_t>(p1 >> 32) ^ c[1] ^ k0, static_cast<uint32_t>(p1),
           static_cast<uint32_t>(p0 >> 32) ^ c[3] ^ k1, static_cast<uint32_t>(p0)};
      k0 += 0x9E3779B9;
      k1 += 0xBB67AE85;
    }
    return c;
  }

  // Uniform in (0, 1), never an end: 24 random bits, centred. The largest centre would round to 1.
  static constexpr float Uniform(uint32_t word) {
    const float centre = (static_cast<float>(word >> 8) + 0.5f) * 0x1p-24f;
    return centre < 1 ? centre : 1 - 0x1p-24f;
  }

  // A seed of its own for each call number of a seed: where position and stream use up the counter.
  static constexpr uint64_t Fold(uint64_t seed, uint64_t call) {
    const Words words = Block(seed, ~uint64_t{0}, call);
    return words[0] | uint64_t{words[1]} << 32;
  }
};

}  // namespace tandem
