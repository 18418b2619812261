"""HdrHistogram's V2 form, as smtp-loadgen's reports hold it: enough of it to add up rounds and read percentiles."""

import base64
import struct
import zlib

V2, V2_COMPRESSED = 0x1C849303, 0x1C849304


def counts(text):
    """Counts by value (the highest that falls into the same slot), from base64."""
    data = base64.b64decode(text)
    cookie, length = struct.unpack(">II", data[:8])
    if cookie & ~0xF0 != V2_COMPRESSED & ~0xF0:
        raise ValueError("not a compressed V2 histogram")
    data = zlib.decompress(data[8 : 8 + length])
    cookie, length, _, digits, low = struct.unpack(">IIiiQ", data[:24])
    if cookie & ~0xF0 != V2 & ~0xF0:
        raise ValueError("not a V2 histogram")
    body = data[40 : 40 + length]
    # Slots of the same width up to `half * 2`, then `half` slots for each doubling.
    half = 1 << ((2 * 10**digits - 1).bit_length() - 1)
    unit = low.bit_length() - 1
    found, at, index = {}, 0, 0
    while at < len(body):
        number = shift = 0
        for place in range(9):
            byte = body[at]
            at += 1
            if place == 8:
                number |= byte << shift
                break
            number |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        number = (number >> 1) ^ -(number & 1)
        if number < 0:
            index += -number
            continue
        if number:
            bucket = max(index // half - 1, 0)
            within = index - bucket * half
            found[((within + 1) << (bucket + unit)) - 1] = number
        index += 1
    return found


def add(histograms):
    total = {}
    for histogram in histograms:
        for value, count in histogram.items():
            total[value] = total.get(value, 0) + count
    return total


def percentile(histogram, share, above=10):
    """The value below which `share` lies; None with fewer than `above` measurements beyond it."""
    total = sum(histogram.values())
    if total == 0 or total * (1 - share) < above:
        return None
    left = total * share
    for value in sorted(histogram):
        left -= histogram[value]
        if left <= 0:
            return value
    return max(histogram)
