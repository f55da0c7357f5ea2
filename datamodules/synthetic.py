"""Built-in sample data: made at run time from a seed, so that everything runs without a network."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd


def sample_climate(years: int, seed: int, start: str = "2014-01-01") -> pd.DataFrame:
    """Hourly weather of an invented station, in the columns and the units of the Jena record.

    Annual and daily cycles, and weather that lasts hours to days: high pressure clears the sky and brings wind from
    the north, which cools the days that follow, so that the other columns help to forecast the temperature. Of the
    real record's faults it has a day recorded twice, a gap of seven hours, a 70-minute step and -9999 in both winds.

    Args:
        years: how many, at least 1.
        seed: the same one gives the same table.
        start: the first hour.

    Returns:
        A frame of 15 columns: the time as text (`dd.mm.yyyy HH:MM:SS`), numbers rounded as an instrument writes them.
    """
    begin = pd.Timestamp(start)
    hours = (begin + pd.DateOffset(years=years) - begin) // pd.Timedelta(hours=1)
    minutes = 60 * np.arange(hours)
    times = np.datetime64(begin, "m") + minutes
    generator = np.random.default_rng(seed)
    pressure, warmth, front, cloud, from_north, from_east = _weather(hours, generator).T

    day = 2 * np.pi * (minutes / 1440 - 15 / 24)  # warmest at 15:00
    year = 2 * np.pi * ((times - times.astype("datetime64[Y]")) / np.timedelta64(1, "D") / 365.2425 - 200 / 365.2425)
    sun = (3.2 + 1.9 * np.cos(year)) / (1 + np.exp(0.9 * cloud))  # half the daily range, more under a clear sky
    kelvin = 273.15 + 9.3 + 9.0 * np.cos(year) + 2 * sun * np.cos(day) + 3.6 * warmth + 1.3 * front
    celsius = kelvin - 273.15
    spread = np.clip(3.5 + 2.2 * sun * np.cos(day) - 1.6 * cloud + 0.8 * pressure + 1.5 * np.cos(year), 0.1, None)
    station = 989.0 + 8.3 * pressure
    saturated, vapour = _vapour_pressure(celsius), _vapour_pressure(celsius - spread)
    speed = np.hypot(from_north, from_east) * (1.5 + 0.3 * np.cos(day))
    table = {
        "p (mbar)": station,
        "T (degC)": celsius,
        "Tpot (K)": kelvin * (1000 / station) ** 0.286,
        "Tdew (degC)": celsius - spread,
        "rh (%)": 100 * vapour / saturated,
        "VPmax (mbar)": saturated,
        "VPact (mbar)": vapour,
        "VPdef (mbar)": saturated - vapour,
        "sh (g/kg)": 622 * vapour / (station - 0.378 * vapour),
        "H2OC (mmol/mol)": 1000 * vapour / station,
        "rho (g/m**3)": 1e5 * station / (287.05 * kelvin * (1 + 0.378 * vapour / station)),
        "wv (m/s)": speed,
        "max. wv (m/s)": speed * (1.5 + 0.4 * generator.random(hours)) + 0.2,
        "wd (deg)": np.rad2deg(np.arctan2(from_east, from_north)) % 360,
    }
    return _with_faults(times, pd.DataFrame(table).round(2), generator)


def _weather(hours: int, generator: np.random.Generator) -> np.ndarray:
    """Pressure, warmth, fronts, cloud, wind from north and east, each of about unit variance: (hours, 6)."""
    memory = np.array([60.0, 55.0, 10.0, 14.0, 24.0, 24.0])  # hours until a disturbance has faded to 1/e
    step = np.diag(np.exp(-1 / memory))
    step[1, 4] = -0.022  # wind from the north takes warmth away,
    step[4, 0] = 0.018  # high pressure brings that wind
    step[3, 0] = -0.035  # and a clear sky,
    step[2, 3] = -0.04  # clouds cool
    noise = generator.standard_normal((hours + 500, 6)) * np.sqrt(1 - np.exp(-2 / memory)) * [1, 0.7, 0.9, 0.9, 0.9, 1]
    states = np.empty_like(noise)
    state = np.zeros(6)
    for hour, push in enumerate(noise):
        state = step @ state + push
        states[hour] = state
    return states[500:]  # without the run-up from nothing


def _vapour_pressure(celsius: np.ndarray) -> np.ndarray:
    """Magnus formula: saturation over water, in mbar."""
    return 6.1078 * np.exp(17.08085 * celsius / (234.175 + celsius))


def _with_faults(times: np.ndarray, table: pd.DataFrame, generator: np.random.Generator) -> pd.DataFrame:
    """The faults of the real record: those of time in the first year, those of the winds anywhere."""
    shifted = times + np.where(np.arange(len(times)) >= 3000, 10, 0)  # one step of 70 minutes
    order = np.arange(len(times))
    order = np.concatenate([order[:4368], order[4344:]])  # a day twice
    order = order[(order < 6000) | (order >= 6006)]  # 7 hours from row 5999 to row 6006
    table.insert(0, "Date Time", pd.Series(shifted).dt.strftime("%d.%m.%Y %H:%M:%S"))
    table = table.iloc[order].reset_index(drop=True)
    for column, count in (("wv (m/s)", 3), ("max. wv (m/s)", 4)):
        table.loc[generator.choice(len(table), count, replace=False), column] = -9999.0
    return table


_CATEGORIES: dict[str, tuple[float, str, str]] = {  # share of the rows, what it is called, what is said of it
    "书籍": (0.08, "书 这本书 小说", "内容 故事情节 作者文笔 印刷 纸张 封面 排版 翻译 插图 观点"),
    "平板": (0.14, "平板 这款平板 平板电脑", "屏幕 触控 续航 系统 分辨率 音质 运行速度 手写笔 充电 画面"),
    "手机": (0.06, "手机 这款手机 新手机", "拍照 信号 电池 屏幕 系统 通话 指纹 铃声 充电 外形"),
    "水果": (0.14, "苹果 橙子 这箱水果", "口感 个头 水分 甜度 新鲜度 果皮 味道 成熟度 果肉 大小"),
    "洗发水": (0.13, "洗发水 这瓶洗发水 护发素", "香味 泡沫 去屑效果 柔顺度 瓶身 用量 头皮 发质 味道 控油"),
    "热水器": (0.03, "热水器 这台热水器", "加热速度 安装 水温 保温 安装师傅 水箱 耗电 容量 配件 噪音"),
    "蒙牛": (0.05, "蒙牛牛奶 纯牛奶 酸奶", "口感 日期 奶味 包装 浓度 生产日期 味道 保质期 甜度 箱子"),
    "衣服": (0.15, "衣服 这件衣服 裙子", "面料 尺码 做工 颜色 款式 版型 线头 大小 手感 色差"),
    "计算机": (0.08, "笔记本 这台电脑 本本", "散热 键盘 屏幕 运行速度 显卡 硬盘 噪音 系统 电池 外形"),
    "酒店": (0.14, "酒店 这家酒店 房间", "服务员 早餐 卫生 隔音 位置 前台 床铺 空调 交通 噪音"),
}
_SERVICE = ["物流", "客服", "包装", "价格", "性价比", "服务态度", "质量", "快递"]
_PRAISE = ["不错", "很好", "非常满意", "很棒", "挺好的", "超出预期", "没得说", "让人放心"]
_BLAME = ["太差了", "不行", "很一般", "让人失望", "有问题", "不敢恭维", "实在不怎么样", "比想象的差"]
_MORE = ["也", "还", "都", "确实", "总体", "真的"]
_ENDS = {
    "1": ["会再来", "推荐购买", "好评", "值得购买", "全家都喜欢", "下次还来"],
    "0": ["不会再来了", "不推荐", "差评", "要求退货", "后悔了", "谨慎购买"],
}
_VAGUE = {
    "1": ["不错，很满意", "很好", "挺好的，谢谢", "好评", "物流很快，不错", "还可以", "东西收到了，很满意", "性价比高"],
    "0": ["不好，很失望", "太差了", "一般般", "差评", "物流太慢，不满意", "不值这个价", "客服不理人", "再也不来了"],
}
_STOPS = ["", "。", "！", "！！"]
_VAGUE_SHARE, _NOISE_SHARE, _OTHER_SHARE = 0.06, 0.04, 0.2
SMALLEST_REVIEWS = 200


def sample_reviews(size: int, seed: int) -> pd.DataFrame:
    """Made-up shopping reviews in ten unbalanced categories, with the traps of a real file.

    Some reviews say nothing of their category, some mention another one, and 4% carry a random label, so that no model
    gets all of them. A few rows are exact duplicates, one is empty, one holds a byte order mark, and one text stands
    under two categories.

    Args:
        size: number of rows, at least `SMALLEST_REVIEWS`.
        seed: of everything random; the same size and seed give the same rows.

    Returns:
        Columns `cat`, `label` ("1" praise, "0" blame) and `review`, all text, ordered by category.
    """
    if size < SMALLEST_REVIEWS:
        raise ValueError(f"the sample needs at least {SMALLEST_REVIEWS} reviews, not {size}")
    generator = np.random.default_rng(seed)
    names = list(_CATEGORIES)
    counts = [max(3, int(size * share)) for share, _, _ in _CATEGORIES.values()]
    counts[names.index("衣服")] += size - sum(counts)
    rows = []
    for name, count in zip(names, counts, strict=True):
        for _ in range(count):
            label = "1" if generator.random() < 0.55 else "0"
            review = _review(generator, name, label)
            noisy = generator.random() < _NOISE_SHARE
            rows.append((name, str(generator.integers(2)) if noisy else label, review, noisy))
    frame = pd.DataFrame(rows, columns=["cat", "label", "review", "noisy"], dtype=object)
    # Noise permutes the categories of the noisy rows: the classes keep their sizes.
    noisy = np.flatnonzero(frame.pop("noisy").to_numpy(dtype=bool))
    categories = frame["cat"].to_numpy(dtype=object, copy=True)
    categories[noisy] = categories[generator.permutation(noisy)]
    frame["cat"] = categories
    frame = frame.iloc[np.argsort([names.index(name) for name in categories], kind="stable")].reset_index(drop=True)
    return _with_traps(frame, generator)


def _review(generator: np.random.Generator, category: str, label: str) -> str:
    def pick(words: Sequence[str]) -> str:
        return words[int(generator.integers(len(words)))]

    if generator.random() < _VAGUE_SHARE:
        return f"{pick(_VAGUE[label])}{pick('，。 ')}{pick(_ENDS[label])}{pick(_STOPS)}"
    _, called, aspects = _CATEGORIES[category]
    verdicts, contrary = (_PRAISE, _BLAME) if label == "1" else (_BLAME, _PRAISE)
    clauses = []
    for _ in range(int(generator.integers(2, 5))):
        subject = pick(aspects.split()) if generator.random() < 0.6 else pick(_SERVICE)
        clauses.append(
            pick(
                [
                    f"{subject}{pick(verdicts)}",
                    f"{subject}{pick(_MORE)}{pick(verdicts)}",
                    f"{pick(called.split())}的{subject}{pick(verdicts)}",
                    f"就是{subject}{pick(contrary)}",
                    f"{pick(called.split())}{pick(_MORE)}{pick(verdicts)}",
                ]
            )
        )
    if generator.random() < _OTHER_SHARE:
        other = pick([name for name in _CATEGORIES if name != category])
        clauses.insert(int(generator.integers(len(clauses) + 1)), f"比上次买的{other}{pick(verdicts)}")
    if generator.random() < 0.5:
        clauses.append(pick(_ENDS[label]))
    return pick("，。 ").join(clauses) + pick(_STOPS)


def _with_traps(frame: pd.DataFrame, generator: np.random.Generator) -> pd.DataFrame:
    """The same number of rows, a few of them replaced by what real files hold."""
    reviews = frame["review"].to_numpy(dtype=object, copy=True)
    order = generator.permutation(np.flatnonzero([len(review) > 12 for review in reviews]))
    empty, marked, doubled, twin = order[0], order[1], order[2:5], order[5]
    reviews[empty] = ""
    reviews[marked] = "\ufeff" + reviews[marked]
    categories = frame["cat"].to_numpy(dtype=object)
    labels = frame["label"].to_numpy(dtype=object, copy=True)
    for row in doubled:
        source = next(other for other in order[6:] if categories[other] == categories[row] and other not in doubled)
        reviews[row], labels[row] = reviews[source], labels[source]
    reviews[twin] = reviews[next(other for other in order[6:] if categories[other] != categories[twin])]
    return frame.assign(review=reviews, label=labels)
