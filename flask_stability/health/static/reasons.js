// What checks say, in the page's language: the service writes English, with the figures of the moment.

import {language} from "./words.js";

const WINDOWS = {"minute": "一分钟", "five minutes": "五分钟"};
const GROWING = {threads: "线程", timers: "定时器", open_files: "打开的文件", sockets: "套接字", receivers: "信号接收者",
  gc_objects: "对象", garbage: "垃圾对象"};

/** [what is said, how to say it]: the whole of a reason, or of a part of it between "; ". */
const CHINESE = [
  [/^(\d+%) of (\d+) requests failed in the last (minute|five minutes)(?:, most of them (.+))?$/,
    (_, rate, number, window, where) => `最近${WINDOWS[window]}的 ${number} 个请求中有 ${rate} 失败${where ? `，多数是 ${where}` : ""}`],
  [/^checker stuck$/, "检查已卡住，没有新的结果"],
  [/^checker late$/, "检查结果迟到"],
  [/^timeout, running (\d+) s$/, "超时，已运行 $1 秒"],
  [/^no thread for it$/, "没有可用的线程来执行"],
  [/^memory leak suspected$/, "疑似内存泄漏"],
  [/^close to the limit$/, "接近内存上限"],
  [/^steadily growing: (.+)$/, (_, kinds) => `持续增长：${kinds.split(", ").map((kind) => GROWING[kind] ?? kind).join("、")}`],
  [/^the limit is below 1\.2 × what a warm worker needs$/, "上限低于预热后进程所需内存的 1.2 倍"],
  [/^the container is too small for its workers$/, "容器内存不足以容纳全部工作进程"],
  [/^the circuit to the database is open$/, "数据库熔断器已打开"],
  [/^threads wait for a connection$/, "有线程在等待数据库连接"],
  [/^all connections have been in use for more than (\S+) s$/, "全部连接已被占用超过 $1 秒"],
  [/^the database takes no more connections now$/, "数据库暂不接受更多连接"],
  [/^little space on (.+)$/, "$1 空间不足"],
  [/^few inodes left on (.+): remove small files$/, "$1 的 inode 即将用尽：请删除小文件"],
  [/^slow answers$/, "响应缓慢"],
  [/^too many worker crashes$/, "工作进程崩溃过多"],
  [/^log records are dropped$/, "日志记录有丢失"],
  [/^the certificate of (.+) has expired$/, "$1 的证书已过期"],
  [/^the certificate of (.+) ends in (\d+) days: renew it$/, "$1 的证书将在 $2 天后过期：请更新"],
  [/^the certificate of (.+) cannot be read \((.+)\)$/, "无法读取 $1 的证书（$2）"],
  [/^the error budget of (\S+) % is being spent (.+) times too fast over (\S+) and (.+) times over (\S+)$/,
    "$1% 目标的错误预算消耗过快：$3 内为 $2 倍，$5 内为 $4 倍"],
  [/^the service is being stopped$/, "服务正在停止"],
  [/^release (\S+) refused after (\d+) requests: (.+)$/, "新版本 $1 在 $2 个请求后被拒绝：$3"],
  [/^(\S+) serves on$/, "$1 继续服务"],
  [/^restarts are held back$/, "重启被暂缓"],
  [/^(CircuitOpen|DatabaseUnavailable|PoolTimeout)\b(.*)$/, "数据库不可用（$1$2）"],
  [/^error (\d+): (.+)$/, "错误 $1：$2"],
];

/** A reason as the page's reader wants it; what is not known stays as it is. */
export function reason(text) {
  if (language !== "zh") return text;
  return text.split("; ").map((part) => {
    const found = CHINESE.find(([said]) => said.test(part));
    return found ? part.replace(...found) : part;
  }).join("；");
}

/** A note, "check: reason". */
export function note(text) {
  const at = text.indexOf(": ");
  if (language !== "zh" || at < 0) return text;
  return `${text.slice(0, at)}：${reason(text.slice(at + 2))}`;
}
