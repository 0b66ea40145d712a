"""The C library's rand(), which no seed of Caffe reaches."""

from collections import deque


class GlibcRand:
    """rand() of the GNU C library: x[i] = x[i-3] + x[i-31] mod 2^32, without its lowest bit.

    words   the last 31 x
    """

    def __init__(self, seed: int) -> None:
        words = [seed]
        for _ in range(30):
            words.append(16807 * words[-1] % 2147483647)
        self.words = deque(words + words[:3], maxlen=31)
        for _ in range(310):
            self.draw()

    def draw(self) -> int:
        """The next number, 0 to 2^31 - 1."""
        word = (self.words[0] + self.words[28]) % 2**32
        self.words.append(word)
        return word >> 1
