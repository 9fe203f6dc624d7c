// Runs the demo's sizes of the encoder under the compiler's sanitizers: batches that fill vectors and chunks of galaxies
// or leave some of them empty, and several threads.
#include <cstdio>
#include <thread>

#include "encoder.cpp"

int main() {
    constexpr int depth = 1, width = 64, most = CHUNK + 1;
    const size_t count = Encoder<64, 256>::count_constants(depth);
    // The arrays end where the memory ends, so that reading beyond them is found.
    std::vector<float> constants(count);
    for (size_t i = 0; i < count; i++) constants[i] = float(i % 13) * 0.01f - 0.06f;
    std::unique_ptr<Network> network(create_network(64, 256, depth, constants.data(), count));
    if (!network || create_network(64, 256, depth, constants.data(), count - 1)) return 1;
    auto run = [&](int galaxies) {
        std::vector<float> image(size_t(galaxies) * CUTOUT), encoded(size_t(galaxies) * width);
        for (size_t i = 0; i < image.size(); i++) image[i] = float(i % 7) - 3.0f;
        network->encode(image.data(), encoded.data(), galaxies);
        for (float value : encoded)
            if (!(value > -100 && value < 100)) std::printf("%d galaxies: %g\n", galaxies, value);
    };
    for (int galaxies : {0, 1, LANES - 1, LANES, LANES + 1, CHUNK, most}) run(galaxies);
    std::thread threads[] = {std::thread(run, 1), std::thread(run, LANES + 1), std::thread(run, most)};
    for (std::thread &thread : threads) thread.join();
}
