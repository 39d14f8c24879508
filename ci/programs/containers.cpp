// The standard containers in many threads, with blocks that wander between them. Prints sums that do not depend on
// which thread came when.
#include <algorithm>
#include <any>
#include <array>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <deque>
#include <forward_list>
#include <functional>
#include <future>
#include <list>
#include <map>
#include <memory>
#include <memory_resource>
#include <mutex>
#include <new>
#include <queue>
#include <random>
#include <regex>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <unordered_map>
#include <unordered_set>
#include <variant>
#include <vector>

namespace {

constexpr int THREADS = 12;
constexpr int ROUNDS = 6;

using Random = std::mt19937_64;

// FNV-1a.
std::uint64_t hash(const std::string &text) {
    std::uint64_t sum = 0xcbf29ce484222325;
    for (unsigned char c : text)
        sum = (sum ^ c) * 0x100000001b3;
    return sum;
}

std::string word(Random &random, std::size_t most) {
    std::string text(random() % most, 'a');
    for (char &c : text)
        c = static_cast<char>('a' + random() % 26);
    return text;
}

// Trees, hash tables, lists and arrays that grow, shrink, are copied and moved.
std::uint64_t containers(Random &random) {
    std::map<std::string, std::vector<std::string>> map;
    std::unordered_map<std::string, std::list<std::uint64_t>> table;
    std::multiset<std::pair<std::size_t, std::string>> set;
    std::deque<std::string> deque;
    std::priority_queue<std::string> heap;
    for (int i = 0; i < 3000; i++) {
        std::string key = word(random, 4), value = word(random, random() % 50 == 0 ? 5000 : 60);
        map[key].push_back(value);
        table[value].push_front(random() % 1000);
        set.emplace(value.size(), key);
        deque.push_back(value);
        if (deque.size() > 500)
            deque.pop_front();
        heap.push(std::move(value));
        if (i % 7 == 0) {
            map.erase(map.begin());
            set.erase(set.begin());
            heap.pop();
        }
    }
    auto copy = map;
    std::uint64_t sum = 0;
    for (auto &[key, values] : copy) {
        std::sort(values.begin(), values.end());
        values.shrink_to_fit();
        for (const auto &value : values)
            sum = sum * 31 + hash(key + value);
    }
    for (const auto &[key, numbers] : table)
        for (auto number : numbers)
            sum += hash(key) * number;
    for (const auto &[size, text] : set)
        sum = sum * 33 + size + hash(text);
    while (heap.size() > 1000)
        heap.pop();
    return sum ^ hash(heap.top()) ^ hash(deque.front());
}

// Blocks aligned to more than malloc's own alignment.
struct alignas(256) Wide {
    std::array<std::uint64_t, 37> numbers{};
};

std::uint64_t aligned(Random &random) {
    std::vector<std::unique_ptr<Wide>> all;
    std::vector<Wide> array;
    std::uint64_t sum = 0;
    for (int i = 0; i < 400; i++) {
        all.push_back(std::make_unique<Wide>());
        array.emplace_back();
        for (auto *wide : {all.back().get(), &array.back()})
            if (reinterpret_cast<std::uintptr_t>(wide) % 256 != 0)
                throw std::logic_error("not aligned");
        all.back()->numbers[random() % 37] = random();
        if (i % 3 == 0)
            all[random() % all.size()] = std::make_unique<Wide>(*all.back());
    }
    for (const auto &wide : all)
        for (auto number : wide->numbers)
            sum = sum * 7 + number;
    return sum;
}

// Streams, regular expressions, exceptions with text, any, variant, function, memory resources.
std::uint64_t text(Random &random) {
    static const std::regex pattern("([aeiou])([^aeiou]+)");
    std::ostringstream stream;
    for (int i = 0; i < 60; i++)
        stream << word(random, 12) << ' ' << random() % 1000 << '\n';
    std::uint64_t sum = hash(std::regex_replace(stream.str(), pattern, "<$2$1>"));
    std::vector<std::any> anys;
    std::vector<std::variant<int, std::string, std::vector<double>>> variants;
    std::vector<std::function<std::uint64_t()>> functions;
    for (int i = 0; i < 300; i++) {
        anys.emplace_back(word(random, 100));
        switch (random() % 3) {
        case 0:
            variants.emplace_back(i);
            break;
        case 1:
            variants.emplace_back(word(random, 50));
            break;
        default:
            variants.emplace_back(std::vector<double>(random() % 90, 0.5));
        }
        functions.emplace_back([i, copy = anys] { return hash(std::any_cast<std::string>(copy[i])) + copy.size(); });
        if (functions.size() > 20)
            functions.erase(functions.begin());
        try {
            if (random() % 2)
                throw std::runtime_error(word(random, 300));
            static_cast<void>(std::string(10, 'x').at(random() % 10 + 10));
        } catch (const std::exception &error) {
            sum = sum * 3 + hash(error.what());
        }
    }
    for (const auto &function : functions)
        sum += function();
    for (const auto &variant : variants)
        sum = sum * 5 + variant.index();
    std::pmr::unsynchronized_pool_resource pool;
    std::pmr::map<int, std::pmr::string> names(&pool);
    for (int i = 0; i < 1000; i++)
        names[static_cast<int>(random() % 500)] += std::to_string(random() % 100000) + " and some more text";
    for (const auto &[key, name] : names)
        sum += static_cast<std::uint64_t>(key) * hash(std::string(name));
    return sum;
}

// What threads hand each other: made by one, read by another, freed by whoever is the last.
struct Parcel {
    std::vector<std::shared_ptr<const std::string>> texts;
    std::forward_list<std::uint64_t> numbers;
};

class Mail {
  public:
    void send(std::unique_ptr<Parcel> parcel) {
        {
            std::lock_guard lock(mutex);
            parcels.push_back(std::move(parcel));
        }
        there.notify_one();
    }

    std::unique_ptr<Parcel> receive() {
        std::unique_lock lock(mutex);
        there.wait(lock, [this] { return !parcels.empty(); });
        auto parcel = std::move(parcels.front());
        parcels.pop_front();
        return parcel;
    }

  private:
    std::mutex mutex;
    std::condition_variable there;
    std::deque<std::unique_ptr<Parcel>> parcels;
};

Mail mail[THREADS];
std::atomic<std::uint64_t> received{0};

void exchange(int self, Random &random) {
    constexpr int PARCELS = 400;
    auto shared = std::make_shared<const std::string>(word(random, 2000));
    for (int i = 0; i < PARCELS; i++) {
        auto parcel = std::make_unique<Parcel>();
        for (std::size_t n = random() % 30; n > 0; n--) {
            parcel->texts.push_back(n % 5 == 0 ? shared : std::make_shared<const std::string>(word(random, 200)));
            parcel->numbers.push_front(random());
        }
        // To each in turn, so that everybody gets as many as he waits for.
        mail[(self + i) % THREADS].send(std::move(parcel));
        auto got = mail[self].receive();
        std::uint64_t sum = 0;
        for (const auto &text : got->texts)
            sum += hash(*text);
        for (auto number : got->numbers)
            sum += number;
        received += sum;
    }
}

// Storage of a thread that is freed when it ends.
thread_local std::unordered_set<std::string> seen;

std::uint64_t work(int self) {
    Random random(static_cast<std::uint64_t>(self) + 1);
    std::uint64_t sum = 0;
    for (int round = 0; round < ROUNDS; round++) {
        sum = sum * 17 + containers(random);
        sum = sum * 17 + aligned(random);
        sum = sum * 17 + text(random);
        exchange(self, random);
        for (int i = 0; i < 500; i++)
            seen.insert(word(random, 20));
        // Threads that live shortly, whose results outlive them.
        auto later = std::async(std::launch::async, [seed = random()] {
            Random random(seed);
            std::vector<std::string> words;
            for (int i = 0; i < 200; i++)
                words.push_back(word(random, 300));
            return words;
        });
        for (const auto &word : later.get())
            sum += hash(word);
        // Large blocks, which have mappings of their own.
        std::vector<std::uint64_t> large;
        for (int i = 0; i < 300'000; i++)
            large.push_back(static_cast<std::uint64_t>(i) * sum);
        sum += large[random() % large.size()];
        try {
            std::size_t much = SIZE_MAX / 4;
            asm volatile("" : "+r"(much));
            ::operator delete(::operator new(much));
        } catch (const std::bad_alloc &) {
            sum++;
        }
    }
    return sum + seen.size();
}

} // namespace

int main() {
    std::vector<std::future<std::uint64_t>> sums;
    for (int i = 0; i < THREADS; i++)
        sums.push_back(std::async(std::launch::async, work, i));
    for (int i = 0; i < THREADS; i++)
        std::printf("%d %016llx\n", i, static_cast<unsigned long long>(sums[static_cast<std::size_t>(i)].get()));
    std::printf("received %016llx\n", static_cast<unsigned long long>(received.load()));
}
