"""ex2, rcp, rsqrt and sqrt as the hardware approximates them, bit for bit on an H200.

Each is a quadratic in the low bits of the operand's fraction, c0 + c1 k + c2 k^2, with coefficients that its high bits
choose: Oberman and Siu, "A High-Performance Area-Efficient Multifunction Interpolator" (ARITH 2005), describe such a
unit, and how many bits each coefficient has. The coefficients here, the constants and what the squarer leaves out were
solved for from all 2**23 results of a binade of each function: no other choice gives every one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from megamoe_jit.emulator.isa.codecs import F32_INFINITY, F32_NAN, F32_SIGN
from megamoe_jit.emulator.isa.lanes import Calc, Lanes

_FRACTION_BITS = 23
_ONE = 1 << _FRACTION_BITS
_LOW_BITS = 17
"""Bits of k. rcp has 16 and a table twice as large."""
_SQUARE_CUT = 19
"""Columns of the square's partial products that are left out, and bits that it is without."""
_UNIT_BITS = 17
"""Fraction bits of sums, below the last place of the result."""
_C0_SHIFT, _C1_SHIFT = 28, 11
_C1_MASK, _C2_MASK = (1 << 17) - 1, (1 << 11) - 1


@dataclass(frozen=True, slots=True)
class _Scale:
    """What coefficients are multiplied by, in units of the sum's last place, and a constant that is added."""

    constant: int
    c1: int
    c2: int


_SCALES = {
    "ex2": _Scale(24456, 4, 4),
    "rcp": _Scale(8092, -4, 4),
    "rsqrt": _Scale(-1, -1, 4),
    "sqrt": _Scale(-1, 1, -2),
}
# Rows in hexadecimal: c0 in quarters of the last place (from bit 28), c1 (17 bits), c2 (11 bits). rsqrt and sqrt have
# 64 rows for even exponents, then 64 for odd ones.
_ROWS = {
    "ex2": """
        20000032c5c9ee 205934a2cd81f5 20b361e2d551fa 210e8a52dd39ff 216ab122e53206 21c7d892ed4a09 222603c2f5720f
        22853592fdb214 22e570c306021d 2346b8130e7222 23a90e8316fa27 240c77531f922f 2470f513284a34 24d68b03311a38
        253d3c3339fa41 25a50b9342fa47 260dfc534c124d 267811a3554254 26e34e935e9258 274fb6a367f261 27bd4cc3717267
        282c14837b0a6e 289c10e384c273 290d45938e9279 297fb5d3987a81 29f36513a28287 2a6856d3aca28f 2ade8ea3b6e295
        2b560fe3c13a9e 2bcede53cbb2a5 2c48fda3d642ae 2cc47133e0fab3 2d413cf3ebcabb 2dbf64b3f6bac1 2e3eec1401c2cb
        2ebfd6d40cf2d1 2f422914183ada 2fc5e6a423a2e3 304b13742f2aec 30d1b3643adaf1 3159cab446a2fb 31e35d64528b05
        326e6fa45e9b0b 32fb05746acb13 33892334771b1c 3418cd24838b26 34aa079490232d 353cd6d49cdb36 35d13f74a9b341
        366745a4b6b34a 36feee14c3db51 37983d64d1235a 38333804de8b66 38cfe2a4ec236d 396e41f4f9db77 3a0e5ad507bb80
        3ab0320515bb8d 3b53cc4523eb95 3bf92ea532439d 3ca05e0540bbaa 3d495f854f63b2 3df438255e2bbf 3ea0ecf56d23c9
        3f4f83457c43d4
    """,
    "rcp": """
        40000007fff3f5 3f80fe27e053dd 3f03f067c16bc6 3e88cb57a33bb1 3e0f83e785b39b 3d980f8768db86 3d2263874cab73
        3cae75a731135f 3c3c3c47161b4d 3bcbade6fbbb3b 3b5cc116e1eb29 3aef6cb6c8a317 3a83a856afeb06 3a196b4697baf6
        39b0ad36800ae6 3949662668dad7 38e38e565222c7 387f1e263be2b8 381c0e26261aaa 37ba572610c29d 3759f235fbda90
        36fad895e75a82 369d0375d34a77 36406ca5bf9a6a 35e50d95ac4a5d 358ae065996252 3531dee586d246 34da036574a23c
        3483486562ca31 342da815514225 33d91d55401a1c 3385a2b52f3a11 333333551eb207 32e1ca150e79fe 32916204fe89f5
        3241f6b4eee1ea 31f38334df89e2 31a60344d079da 31597244c1a9d1 310dcc14b321c9 30c30c54a4d9c1 30792f1496d1b9
        303030548909b1 2fe80c247b81aa 2fa0bea46e31a2 2f5a443461219c 2f149924544193 2ecfb9e447a18d 2e8ba3143b3986
        2e4851142f017f 2e05c0c4230179 2dc3ef04173973 2d82d8540ba16e 2d4279c4003166 2d02d043f4f961 2cc3d8e3e9f15c
        2c8590d3df1155 2c47f523d46951 2c0b02e3c9e14b 2bceb783bf8946 2b931073b55940 2b580b03ab593c 2b1da493a17936
        2ae3da9397c131 2aaaaac38e392e 2a7212c384d129 2a3a10037b8923 2a02a04372691f 29cbc17369711b 29957123609917
        295fad6357e112 292a73f34f510f 28f5c2b346d90a 28c197b33e8907 288df0e3365102 285acc632e4100 282828532648fb
        27f602a31e70f8 27c459a316b0f3 27932b630f10f0 276276430790ed 273238830028e9 27027052f8e0e7 26d31c12f1a8e2
        26a43a12ea90df 2675c8d2e398de 2647c6b2dcb0da 261a3222d5e0d6 25ed09a2cf30d4 25c04bb2c890d0 2593f6b2c208cd
        25680982bba0cc 253c8272b540c7 25116042af00c5 24e6a192a8d8c4 24bc4502a2c0c1 249249429cb8bd 2468ad1296c8ba
        243f6f3290f0b8 24168e328b28b6 23ee09228578b4 23c5de927fd8b2 239e0d727a48af 237694a274d0ad 234f72e26f68ab
        2328a7126a10a9 2302304264c8a6 22dc0d325f98a5 22b63ce25a70a1 2290be425560a0 226b904250609f 2246b1f24b689b
        2222224246889a 21fde04241b899 21d9eaf23cf096 21b64182384095 2192e2c2339893 216fcdf22f0091 214d02422a788f
        212a7e8226008f 2108423221908c 20e64c421d308a 20c49bd218e089 20a33012149887 20820842106085 206123920c3884
        20408112081883 20202032040882
    """,
    "rsqrt": """
        3fffffffffb5e4 3f817affa185aa 3f05d91f46f574 3e8cfe5eefb540 3e16d0ae9bb510 3da336fe4ab4e2 3d3219bdfc94b6
        3cc3627db1348c 3c56fbdd687464 3becd14d22243e 3b84cf6cde441c 3b1ee41c9c93f8 3abafd4c5d13d8 3a590a8c1fa3b8
        39f8fb5be4239a 399ac0abaa837c 393e4b8b72b362 38e38e5b3ca348 388a7b2b08232e 3833057ad54316 37dd20caa3e2fe
        3788c13a73f2e8 3735db7a4572d4 36e464ba1842c0 36945279ec52ac 36459ad9c1a298 35f833d9982286 35ac14696fc274
        35613389487262 351788a9224254 34cf0b68fd0244 3487b428d8d236 34417b08b58226 33fc5898932218 33b8458871a20c
        33753b6850f1fe 333333583111f0 32f226e81201e4 32b21007f3b1d8 3272e877d621ce 3234aae7b941c2 31f751479d11b8
        31bad6978191ae 317f357766b1a4 314468d74c719a 310a6bc732d192 30d139c719c188 3098cde701317e 30612406e94176
        302a3796d1d16e 2ff40496bae166 2fbe8706a48160 2f89baf68e9158 2f559c76791150 2f2227f664114a 2eef59c64f8144
        2ebd2ea63b513c 2e8ba316279134 2e5ab3c614412e 2e2a5d76015128 2dfa9d25eec122 2dcb6fa5dc911e 2d9cd285cac118
        2d6ec275b94112 2d413cbb50142a 2ce7c64b0d8402 2c905a8acd73da 2c3ae57a8fc3b6 2be754ca546396 2b9596ea1b1374
        2b459b39e3e356 2af75169ae9338 2aaaaac97b231c 2a5f9899496300 2a160d791962e6 29cdfbf8eaf2ce 298757f8be12b8
        294215489292a0 28fe289868828c 28bb87783fd278 287a26d8185264 2839fd37f21252 27fb0127cd0240 27bd2937a9022e
        27806cb786121e 2744c39764320e 270a2597435200 26d08b172351f0 2697ec970441e2 26604306e611d6 262987b6c8c1ca
        25f3b426ac31bc 25bec1969071b2 258aaa867561a4 255768965b119a 2524f69641718e 24f34e96288186 24c26be610317c
        24924955f88172 2462e1c5e16168 243430c5cae160 240631b5b4e156 23d8e0459f714e 23ac38458a9146 2380356576213e
        2354d3f5623136 232a0ff54ec130 22ffe5f53bc128 22d65205293122 22ad510517111c 2284df95055114 225cfa14f40110
        22359dd4e3110a 220ec7b4d28104 21e874c4c240fc 21c2a1f4b270f8 219d4c84a2f0f4 2178721493c0ee 21540f8484e0ea
        213022e47650e4 210ca9546810e0 20e9a0a45a20dc 20c706944c70d6 20a4d8a43f10d2 208314c431f0ce 2061b8b42510ca
        2040c2941870c6 202030940c20c2
    """,
    "sqrt": """
        20000017fff9fa 203fc097f029ee 207f0407e0b1e2 20bdcd37d199d8 20fc1ee7c2d1cd 2139fbb7b461c4 21776627a641bb
        21b460b79869b2 21f0edb78ad9a8 222d0f677d99a1 2268c807709998 22a419b763d98f 22df0687575987 231990574b2181
        2353b9373f1978 238d82e7335972 23c6ef4727c96b 240000171c7165 2438b6f711515f 24711597066158 24a91d86fba151
        24e0d056f1194c 25182f86e6b945 254f3c86dc893f 2585f8c6d2893b 25bc65a6c8b135 25f28476bf0130 26285676b5812b
        265ddd06ac2126 26931946a2f122 26c80c7699e11d 26fcb7c690f118 27311c36883115 27653b167f8910 2799154677090c
        27ccabf66ea909 28000016666905 283312b65e40ff 2865e4b65640fc 289877164e60f9 28cacad64690f4 28fce0c63ee8f2
        292eb9c63758ee 296056b62fe8ec 2991b8762888e7 29c2dfc62150e5 29f3cd861a28e2 2a2482861318de 2a54ff660c28dd
        2a8545060548d9 2ab55415fe80d6 2ae52d45f7d0d3 2b14d165f130cf 2b4440f5eab8cf 2b737cd5e440ca 2ba28585dde8c8
        2bd15bb5d7a8c7 2c000015d170c2 2c2e7335cb58c2 2c5cb5b5c548be 2c8ac825bf50bc 2cb8ab15b970bb 2ce65f35b398b8
        2d13e4f5add8b6 2d413ceb5042ca 2d9b659b39e2b9 2df4dd5b2412ac 2e4da84b0eb29c 2ea5ca3af9d28f 2efd46dae56281
        2f5421bad16272 2faa5e5abdd265 3000001aaaa257 30550a1a97e24c 30a97f7a858241 30fd634a738237 3150b86a61d22a
        31a3819a508220 31f5c19a3f8213 32477b1a2ee20c 3298b09a1e8200 32e9647a0e81f9 33399949fec1f0 33895149ef41e4
        33d88eb9e011dc 342753a9d131d6 3475a279c281cb 34c37cf9b421c5 3510e549a5f1bb 355ddd499811b7 35aa66e98a61af
        35f683f97cf1a9 364236496fb1a1 368d7f9962a198 36d8618955d191 3722ddc949418f 376cf5e93cd187 37b6ab8930917f
        3800001924917b 3848f52918b174 38918c190d1172 38d9c65901916c 3921a558f63164 39692a48eb1161 39b05698e0115c
        39f72b98d53155 3a3daa58ca8150 3a83d438bff14a 3ac9aa58b59147 3b0f2de8ab5143 3b545ff8a1313d 3b9941b897413c
        3bddd4388d6135 3c22188883b132 3c660fa87a212f 3ca9bab870a129 3ced1a88675126 3d3030385e2125 3d72fca855011f
        3db580c84c011a 3df7bd7843311a 3e39b3b83a6113 3e7b644831c111 3ebcd01829310d 3efdf7f820c10a 3f3edca8187108
        3f7f7f18103105 3fbfdff8081103
    """,
}
TABLES: Mapping[str, tuple[int, ...]] = {
    name: tuple(int(row, 16) for row in rows.split()) for name, rows in _ROWS.items()
}
"""Function -> rows, for `Ops.table`."""


def _square(k: Lanes) -> Lanes:
    """Square a number of 17 bits (i32), in units of 2**19.

    The partial products of bits i and j > i count twice, those in columns below 2**19 not at all.
    """
    total = k.const(0)
    for i in range(2, _LOW_BITS):
        lowest = max(i + 1, _SQUARE_CUT - 1 - i)
        mask = (1 << _LOW_BITS) - (1 << lowest)
        row = (k & mask) >> (_SQUARE_CUT - 1 - i) if mask > 0 else k.const(0)
        if 2 * i >= _SQUARE_CUT:
            row = row + (1 << (2 * i - _SQUARE_CUT))
        total = total + (((k >> i) & 1).ne(0)).where(row, 0)
    return total


def _interpolate(calc: Calc, name: str, row: Lanes, k: Lanes, aligned: Lanes) -> Lanes:
    """Return a significand of 24 bits (i32), 2**24 for two; `aligned` is k with 17 bits."""
    scale = _SCALES[name]
    entry = calc.table(name, row)
    total = ((entry >> _C0_SHIFT) << (_UNIT_BITS - 2)) + scale.constant
    total = total + ((entry >> _C1_SHIFT) & _C1_MASK) * k.zext("i64") * scale.c1
    total = total + (entry & _C2_MASK) * _square(aligned).zext("i64") * scale.c2
    return (total >> _UNIT_BITS).trunc("i32")


@dataclass(frozen=True, slots=True)
class _Single:
    """The parts of an f32, as i32."""

    sign: Lanes
    exponent: Lanes
    fraction: Lanes

    @classmethod
    def of(cls, value: Lanes) -> _Single:
        """Take a value apart."""
        bits = value.cast("i32")
        return cls(bits & F32_SIGN, (bits >> _FRACTION_BITS) & 0xFF, bits & (_ONE - 1))

    @property
    def is_nan(self) -> Lanes:
        """Whether it is one."""
        return self.exponent.eq(0xFF) & self.fraction.ne(0)


def ex2(calc: Calc, value: Lanes) -> Lanes:
    """Two to the power of an f32; subnormal operands are zero, and so are subnormal results."""
    x = _Single.of(value)
    negative = x.sign.ne(0)
    significand = (x.fraction | _ONE).zext("i64")
    up = x.exponent.ult(127 + 8).where(x.exponent, 127 + 8)
    left = up.ugt(127).where(up - 127, 0).zext("i64")
    down = x.exponent.ult(127).where(127 - x.exponent, 0)
    right = down.ult(63).where(down, 63).zext("i64")
    # Fixed point, 23 fraction bits, cut off. What is negative is complemented: only whole numbers are negated.
    fixed = x.exponent.eq(0).where(significand.const(0), (significand << left) >> right).trunc("i32")
    is_whole = (fixed & (_ONE - 1)).eq(0)
    fixed = negative.where(is_whole.where(-fixed, ~fixed), fixed)
    fraction = fixed & (_ONE - 1)
    low = fraction & ((1 << _LOW_BITS) - 1)
    mantissa = _interpolate(calc, "ex2", fraction >> _LOW_BITS, low, low) - _ONE
    exponent = fixed.ashr(_FRACTION_BITS) + 127
    bits = (exponent << _FRACTION_BITS) + mantissa
    bits = exponent.slt(1).where(0, exponent.sgt(254).where(F32_INFINITY, bits))
    bits = x.exponent.uge(127 + 8).where(negative.where(bits.const(0), F32_INFINITY), bits)
    return x.is_nan.where(F32_NAN, bits).cast("f32")


def rcp(calc: Calc, value: Lanes) -> Lanes:
    """Reciprocal of an f32; subnormal operands are zero, and so are subnormal results."""
    x = _Single.of(value)
    low = x.fraction & 0xFFFF
    significand = _interpolate(calc, "rcp", x.fraction >> 16, low, low << 1)
    bits = significand - _ONE + ((253 - x.exponent) << _FRACTION_BITS)
    bits = bits.slt(_ONE).where(0, bits)
    bits = x.exponent.eq(0).where(F32_INFINITY, x.exponent.eq(0xFF).where(0, bits)) | x.sign
    return x.is_nan.where(F32_NAN, bits).cast("f32")


def _root(calc: Calc, name: str, x: _Single) -> tuple[Lanes, Lanes]:
    """Return the significand for a positive f32, and half of its exponent."""
    exponent = x.exponent - 127
    low = x.fraction & ((1 << _LOW_BITS) - 1)
    row = ((exponent & 1) << 6) | (x.fraction >> _LOW_BITS)
    return _interpolate(calc, name, row, low, low), exponent.ashr(1)


def rsqrt(calc: Calc, value: Lanes) -> Lanes:
    """Reciprocal of the square root of an f32; subnormal operands are zero."""
    x = _Single.of(value)
    significand, half = _root(calc, "rsqrt", x)
    is_power_of_4 = x.fraction.eq(0) & (x.exponent & 1).ne(0)
    significand = is_power_of_4.where(2 * _ONE, significand)
    bits = significand - _ONE + ((126 - half) << _FRACTION_BITS)
    bits = x.exponent.eq(0xFF).where(0, bits)
    bits = x.sign.ne(0).where(F32_NAN, bits)
    bits = x.exponent.eq(0).where(x.sign | F32_INFINITY, bits)
    return x.is_nan.where(F32_NAN, bits).cast("f32")


def sqrt(calc: Calc, value: Lanes) -> Lanes:
    """Square root of an f32; subnormal operands are zero."""
    x = _Single.of(value)
    significand, half = _root(calc, "sqrt", x)
    bits = significand - _ONE + ((127 + half) << _FRACTION_BITS)
    bits = x.exponent.eq(0xFF).where(F32_INFINITY, bits)
    bits = x.sign.ne(0).where(F32_NAN, bits)
    bits = x.exponent.eq(0).where(x.sign, bits)
    return x.is_nan.where(F32_NAN, bits).cast("f32")


FUNCTIONS: Mapping[str, Callable[[Calc, Lanes], Lanes]] = {"ex2": ex2, "rcp": rcp, "rsqrt": rsqrt, "sqrt": sqrt}
"""What `Ops.special` evaluates: f32 to f32."""
