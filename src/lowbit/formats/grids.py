"""The grids of ggml's i-quants: the rows of small integers that a stored index stands for.

Which rows there are follows no rule, they were found by a search; so they have to be written down. In a grid they
stand sorted, the last element counting most, hence a set says it all: one bit for each row that could be, the first
element counting least. Rows: llama.cpp `ggml/src/ggml-common.h` (MIT licence).
"""

from __future__ import annotations

import base64
import functools
import zlib

import numpy as np

VALUES: dict[str, tuple[tuple[int, ...], int]] = {
    "IQ2_XXS": ((8, 25, 43), 8),
    "IQ2_XS": ((8, 25, 43), 8),
    "IQ2_S": ((8, 25, 43), 8),
    "IQ3_XXS": ((4, 12, 20, 28, 36, 44, 52, 62), 4),
    "IQ3_S": ((1, 3, 5, 7, 9, 11, 13, 15), 4),
    "IQ1_S": ((-1, 0, 1), 8),
}
"""Values that the elements of a grid's rows have, and how many elements; in the order of the bits below."""

_BITS = (
    b"c-nPW&yO5O6@Fc+7L~?9HBOH)2aDR#T59H$h=e1mcDn6#WRq^YI}0Ks6Dd(nNIuxPScY<IE!qP}V~Ftuq}q`!HGP7A0D)vABraadiG_rPkcbqxaE"
    b"dsE@T#hNdS-E2GqW@GetqxN_g>YuP1LeURe^{mzyLrHh=73k1`se()u19l0$fM2#&-aqz^GKX9z|Bsy{r|3?ui6rs3vL<3cnCzg^zNIOb~SGtXTK"
    b"9A>5;t5g8nHzhuox=i2;K+IezDL9Yj-LMiFBMQ78=%*!DVu=zN60ak-COc|InpMb&M;U~<hF#~j!se&P8U}|vAR9_VPW)q81C~G1%YzK@)t$7qH9"
    b"l^wanXHTLQ&~0DiO8U4LDoZ-(KB;j%i-{2s@ZLYAS=U_14|n+BxxhsnyZbp)*}q*Db|-^9XIqfB+s<kc-ZI2R!9z4^BLct`H0U~Yuk3-E~{p#rfn"
    b"N6D~4>H&aqbnC<TELHHJYbLLv)ci^#NNU#siLHAKg8W)KSH2s3TxXhnL5C<-8``*IqGOItHi^?BJnabLBDuBYk^@T5cS9D)d#iQ09Ya*C76GOuqM"
    b"CscjySfy+f*88-5pltCcE@hinmoiK+y-M{Cu~4?36pGx26H_R{hNe-fi(1+E18=(W+LQ(8O<n`B<z=Qkm0MtI14Upp2<iC2$OcJBS3_oC1)Gd=q)"
    b"}vz3$Cr%Vcvn-D75Iu5oxq)gz+0Rs_R{_S(qwU(bP5#S>q=enjN)GvCU*X%vdIbtA=vz&Nk_dP9|m;uyv5p;SLd-lVzB{$StupmTWCa)JGApIbAl"
    b"3X@W1iE$C3|;S=GyrfC~pw}#_wq?-si9<&1L8viU&p_wk{LEA?7GW18$JhE(UT4RMYA-WY46qy~5n0BWIHq9J8H}eSl(S&Ft2%@SI8Z0FThel)_M"
    b"%qyl`*ALe2s3sf=4Nfj^y$2rS6ZkVrUAC4vtlqe{i<PtS!_70`=iSm*9e2z>NKmiu^oyZrfE#hO*App&>h065hi7Wt8Lvd04EBn9w9nlkrRnwP7n"
    b"xKzcuKvu~zVZDMxk^M4i>jA#~tv$|$mvcW~&Yh2__>(TI>R%W+#nW?%@*88u&b$gFJD9n4n44IQ>YBR3OpPSnw~##sYP2Oft(-E>yC%XK$h`jnLs"
    b"1*-{VM8=I;ohR0_He6Y@th2J4!urAE82gMG)@+rw8QyBRW7LP3kL;bY{$OW)pOVOp#(C#Zbrbi{`9gZ2YeRsjNOfguaxHNs%ygn9PO3)g9Acocrp"
    b"}0i$2<sQSk;+Y%Q>J(LZ-9EGgOtX88a>Ipw*zH37xD$+cQSeHF#!OXG;?w3Trn~I@X>-CFzP#+j!i>@-W(vU`8wukUB&E)W$Q#%Z#x>Dvgy(+{2a"
    b"1fTuQT0#3y3eDlDE(fZI;m`;V!dUX?o^)OaLj_P4DOM5tw-oRc{L>B>+buOIR`bDEZ=?uY)f9c-dYOGf4CjlLHv;*(ljaRdvyULg}&2V4Al~z*^r"
    b"Q0~AKKj=Kem~P^KYnmKVUUPF{w%3aX0YIizQDAXsL_sCNOM*!c?yJ+4BcUM8~kl{=i?9bYY<5BsFn+)K&4LBVnLNSyNGL4RAB_!1of=cLcV25jy$"
    b"18{z04TLVNG)+uJ(=<!2$gAxE%tPez%*c8OuJjmz6i3QuuR`^E`cQb`mym)uemUz1!GEHh`oL<xkd41aQ!V-5Hz^osu>NKFNv;@pzZ#0N+4THF%I"
    b"JhhdHJ&t6}_9RyxUZ1cb+~L9uy`^uhgeknc((HlaxFl);w{Tb$!qQkM$tzR&Eo2>&l<(lbBkuA_Owd(hM*Yw#%&IwTZ}j&`Ca6$~$!?>}MhaMTS1"
    b"H<WVCU-=P9JmS5y;UHfA3V7jkGbg4UUBOw|&vypXE9U+I!KyFHg<+@+afBXr6wX7c|-rqL@yW_ZscXn2wGEkNw{l{^)6$Jy$-&p3cgbVxJSV+8cR"
    b"6gy#7X{uQ5l1+GN<^ysOUFV)Mh`ZRwVitTZk@-v@s9)^Ii!ZM^|k7j@2znYEd#jCf|tL2;De6l-x8ecw<%r5@<@>!WcLdW?mizSER!WYuNCiHO%H"
    b"^_}L4|$>xVH4BEa&NltbNOKWCf$nZ6k(*4|2l|d!B321&p(PA5U0md8Gcakef)leFYywA2z@v;$IHn3G30T<Zyt#>rW`u(Qqr;jy7SZgYB-+VEXQ"
    b"AhIO8%*<QCHLsORrKUzD%XgITis-H#3q-W#9A-`_gOCodNC=oSg{f|vA#uct}+$#?uOk4^s-;}KBLKS<MX=6mtEY<B&`?1xWM|8dImEZj}u<~jM|"
    b"rIWkY{_}Wz<+s;=@Z{3J|NH5?znfkA#ozw%*{5$`+PV9qJYnVa%UdNsKYkcr{cN^<_Ya;p{qnKb$JxopfGP7c<qpWW$ljqpk8eL0hmgWc-k%`m9K"
    b"Mm4<x~02_1wQGy$}C+<%{R<vY1^duZ7Kz?+eIG9Vk~fX<YttmYm!27v6Em)6?<>-X5@Guf%qjOB$Ac&vxuCYo8n1C@OuDCOAWR%HPP}J5iP%&@4X"
    b"lLbAsv#%ht%1{w8M#>=AcATw5bW3Ud-&{3Qn$1Nz+GJpO+W(9_by)p}V2zN#@@vlD&Pw;&9=sc!;@~c-%`dWDG`~H!4y-Xq#-Z+g!l4be0+)eNJD"
    b"d&v(c>?iex67HO=$-Gug;MhSz<x97c3C5(<5ylc-Gs5S8Qo1K#77t5-3aPOOT&$^v<OGrd=zGc;|iuMjYIW6QW%iv"
)


@functools.cache
def grid(name: str) -> np.ndarray:
    """Return a grid: int8, shape (rows, elements of a row)."""
    bits = np.unpackbits(np.frombuffer(zlib.decompress(base64.b85decode(_BITS)), np.uint8))
    for other, (values, length) in VALUES.items():
        size = len(values) ** length
        if other == name:
            numbers = np.flatnonzero(bits[:size])[:, None]
            rows: np.ndarray = np.array(values, np.int8)[numbers // len(values) ** np.arange(length) % len(values)]
            rows.flags.writeable = False
            return rows
        bits = bits[-(-size // 8) * 8 :]
    raise KeyError(name)
